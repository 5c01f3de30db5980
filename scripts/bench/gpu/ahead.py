"""Our step compiled for an H200 that is not there: memory of each variant, and whether attention is cuDNN's.

`ahead.py "rows=8;rows=8,remat=dots" --size 8b-layers` on any x86-64 Linux machine with `jax[cuda13]` and no GPU.
Nothing is timed: the compiler's own choices by measurement (autotuning) are made only where there is a device.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = (
    "cpu"  # Before JAX starts: the plugin is there for its compiler alone.
)

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from ours import prepare
from variants import SIZES, Size, Variant, parse_variant

from jaxscale.training.state import abstract_state, state_shardings

VARIANTS = (
    "rows=4;rows=8;rows=4,remat=dots;rows=8,remat=dots;rows=16,remat=dots;rows=8,remat=minimal;"
    "rows=8,remat=full;rows=16,remat=full"
)
_TARGET = Path(__file__).parent / "h200.txtpb"
_COLUMNS = ("variant", "cuDNN forward", "cuDNN backward", "state GiB", "peak GiB", "compiled in s")


def main() -> None:
    arguments = _arguments()
    topology = topologies.get_topology_desc(
        "h200", platform="cuda", topology="1x1x1", target_config=_TARGET.read_text()
    )
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for spec in arguments.variants.split(";"):
        row = _row(SIZES[arguments.size], parse_variant(spec), topology.devices[0])
        print(row, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="?", default=VARIANTS, help="by semicolons")
    parser.add_argument("--size", choices=SIZES, default="1b")
    return parser.parse_args()


def _row(size: Size, variant: Variant, device: jax.Device) -> str:
    lowered = _lowered(size, variant, device)
    text = lowered.as_text()
    backward = text.count("__cudnn$fmhaSoftmaxBackward")
    forward = text.count("__cudnn$fmhaSoftmax") - backward
    started = time.time()
    memory = lowered.compile().memory_analysis()
    seconds = time.time() - started
    gib = [memory.argument_size_in_bytes / 2**30, memory.peak_memory_in_bytes / 2**30]
    cells = [variant.spec, str(forward), str(backward), *(f"{size:.1f}" for size in gib)]
    return f"| {' | '.join(cells)} | {seconds:.0f} |"


def _lowered(size: Size, variant: Variant, device: jax.Device) -> Any:
    parts = prepare(size, variant, device)
    replicated = parts.placement.replicated()
    ids = jax.ShapeDtypeStruct((variant.rows, size.sequence), jnp.int32, sharding=replicated)
    documents = ids if variant.documents == "packed" else None
    batch = {"tokens": ids, "targets": ids, "segment_ids": documents, "positions": documents}
    shardings = state_shardings(parts.specs, parts.placement), replicated
    step: Any = jax.jit(parts.step, donate_argnums=0, out_shardings=shardings)
    return step.lower(abstract_state(parts.specs, parts.placement), batch)


if __name__ == "__main__":
    main()
