"""Times ragged products, the loss, norms, attention and fp8 products against what they replace, on this device.

    python scripts/bench/kernels/run.py [--ops ragged loss norm attention fp8] [--rounds 7] [--out FILE]

On CPU shapes are small (about a minute); on an accelerator they are Llama 3.2 1B's and 3 8B's. Writes what was measured
with versions and date as JSON.
"""

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
from timing import measure, show

OPS = ("ragged", "loss", "norm", "attention", "fp8")


def small(op: str) -> Iterator[cases.Case]:
    """Cases for a CPU."""
    for dtype in (jnp.float32, jnp.bfloat16):
        name = jnp.dtype(dtype).name
        if op == "ragged":
            yield cases.ragged(2048, 512, 1024, 8, name)
            yield cases.ragged(2048, 256, 256, 32, name)
        if op == "loss":
            yield cases.loss(2048, 512, 8192, 512, name)
            yield cases.loss(4096, 512, 8192, 1024, name)
        if op == "norm":
            yield cases.norm(4096, 512, 1536, name)
    if op == "attention":
        yield cases.self_attention(2, 512, 8, 4, 64, "float32")
    if op == "fp8":
        yield cases.fp8(512, 256, 256, "bfloat16")


def large(op: str) -> Iterator[cases.Case]:
    """Cases for an accelerator, in bfloat16."""
    dtype = "bfloat16"
    if op == "ragged":
        yield cases.ragged(32768, 4096, 14336, 8, dtype)
        yield cases.ragged(32768, 2048, 768, 128, dtype)
    if op == "loss":
        yield cases.loss(16384, 2048, 128256, 2048, dtype)
        yield cases.loss(8192, 4096, 128256, 2048, dtype)
    if op == "norm":
        yield cases.norm(32768, 2048, 8192, dtype)
        yield cases.norm(16384, 4096, 14336, dtype)
    if op == "attention":
        yield cases.self_attention(4, 4096, 32, 8, 64, dtype)
        yield cases.self_attention(2, 8192, 32, 8, 128, dtype)
    if op == "fp8":
        yield cases.fp8(16384, 2048, 8192, dtype)
        yield cases.fp8(8192, 4096, 14336, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", nargs="+", default=list(OPS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=1, help="calls of a form in each round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = jax.devices()[0]
    shapes = small if device.platform == "cpu" else large
    rows = []
    for op in options.ops:
        for case in shapes(op):
            # The plain reference of attention holds all scores: not on an accelerator's shapes.
            forms = dict(case.forms)
            if shapes is large:
                forms.pop("reference", None)
            forms = cases.willing(forms, case.arguments)
            found = measure(forms, case.arguments, rounds=options.rounds, repeats=options.repeats)
            show(case.title, found, case.baseline, case.flops)
            rows.append({"case": case.title, "flops": case.flops, "baseline": case.baseline})
            rows[-1]["forms"] = {name: each.to_json() for name, each in found.items()}
    result = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "device": device.device_kind,
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "rounds": options.rounds,
        "cases": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
