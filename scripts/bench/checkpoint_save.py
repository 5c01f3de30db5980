"""What a checkpoint costs: one JSON line.

    python scripts/bench/checkpoint_save.py --megabytes 400 --directory /some/disk

The state is float32 noise (it does not compress) in 16 arrays over all devices, so the bytes
written are the bytes of the state. `blocked` is how long `save` holds the training thread.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxscale.checkpoint import Checkpointer, Keep
from jaxscale.checkpoint.integrity import find_problems

NUM_ARRAYS = 16


def make_state(megabytes: int) -> dict[str, jax.Array]:
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("fsdp",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    columns = megabytes * 10**6 // (4 * NUM_ARRAYS * 8 * devices)
    rng = np.random.default_rng(0)
    return {
        f"params/{i}": jax.device_put(rng.random((8 * devices, columns), np.float32), sharding)
        for i in range(NUM_ARRAYS)
    }


def measure(directory: Path, state: dict[str, jax.Array], repeats: int) -> dict[str, float]:
    target = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for path, x in state.items()
    }
    runs = []
    with Checkpointer(directory, Keep(last=1)) as checkpointer:
        for step in range(repeats + 1):
            start = time.perf_counter()
            checkpointer.save(step, state, {})
            blocked = time.perf_counter()
            checkpointer.wait()
            saved = time.perf_counter()
            find_problems(directory / str(step))
            verified = time.perf_counter()
            jax.block_until_ready(checkpointer.restore(target, integrity="skip").arrays)
            restored = time.perf_counter()
            runs.append((blocked - start, saved - start, verified - saved, restored - verified))
    names = ("blocked_s", "save_s", "checksum_s", "restore_s")
    medians = np.median(runs[1:], axis=0)  # The first run pays for imports and compilation.
    return {name: round(float(value), 4) for name, value in zip(names, medians, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        state = make_state(arguments.megabytes)
        num_bytes = sum(x.nbytes for x in state.values())
        times = measure(directory, state, arguments.repeats)
    finally:
        shutil.rmtree(directory)
    record = {
        "bytes": num_bytes,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        **times,
        "checksum_GB_per_s": round(num_bytes / times["checksum_s"] / 1e9, 3),
        "restore_GB_per_s": round(num_bytes / times["restore_s"] / 1e9, 3),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
