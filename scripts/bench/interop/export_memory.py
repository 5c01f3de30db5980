"""What an export costs: peak resident memory and throughput, beside a plain copy of the same files. JSON lines.

    python scripts/bench/interop/export_memory.py --gigabytes 1 3 6 --directory /some/disk

Each checkpoint is a Llama in fp32 as 8-way FSDP stores it (every block holds an eighth of the rows of all layers),
of noise, so nothing compresses. Copy and export run in processes of their own, both flush what they wrote to the disk,
and both find the checkpoint outside of the page cache where the system lets us drop it. Throughput is bytes of the
checkpoint a second, without the start of Python and its imports; `process_s` is with them.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import measuring
import numpy as np

EMBED, MLP, HEADS, VOCAB, FSDP = 2048, 8192, 16, 32_000, 8
STEP = 1
FREE_FACTOR = 2.2  # The checkpoint, its copy or its export, and some room.


def model_section(gigabytes: float) -> dict[str, object]:
    layer = 4 * EMBED * EMBED + 3 * EMBED * MLP
    layers = max(1, round((gigabytes * 1e9 / 4 - VOCAB * EMBED) / layer))
    return {
        "family": "llama3.2", "vocab_size": VOCAB, "max_positions": 4096, "num_layers": layers, "embed_dim": EMBED,
        "num_heads": HEADS, "mlp_dim": MLP,
    }  # fmt: skip


def make(directory: Path, gigabytes: float) -> None:
    """A checkpoint of noise, block by block, as a run of eight FSDP devices leaves it."""
    from jaxscale.checkpoint.manifest import Manifest, array_entry
    from jaxscale.checkpoint.streamed import StreamedCheckpoint
    from jaxscale.config.model_section import ModelSection
    from jaxscale.config.run import RunConfig
    from jaxscale.models.build import model_builder
    from jaxscale.models.description import blueprint

    section = model_section(gigabytes)
    training = {"steps": 1, "global_batch": 1}
    config = RunConfig.model_validate({"model": section, "training": training})
    description = blueprint(model_builder(ModelSection.model_validate(section))).description
    entries = {
        f"params/{p}": array_entry(f"params/{p}", s.shape, s.dtype) for p, s in description.items()
    }
    chunks = {}
    for path, spec in description.items():
        pairs = zip(spec.shape, spec.axes, strict=True)
        chunks[f"params/{path}"] = tuple(n // FSDP if axis == "embed" else n for n, axis in pairs)
    metadata = {"config": config.model_dump(mode="json")}
    manifest = Manifest(STEP, None, None, tuple(entries.values()), metadata)
    rng = np.random.default_rng(0)
    with StreamedCheckpoint(directory / "run" / "checkpoints", manifest, chunks=chunks) as target:
        for path in target.entries:
            for box in target.boxes(path):
                shape = tuple(r.stop - r.start for r in box)
                target.write(path, box, rng.random(shape, np.float32) - 0.5)


def export(directory: Path, dtype: str, integrity: str) -> None:
    from jaxscale.checkpoint.casting import float_dtype
    from jaxscale.interop.export_hf import export_hf
    from jaxscale.interop.export_job import ExportOptions

    options = ExportOptions(integrity="verify" if integrity == "verify" else "skip")
    measuring.say(
        lambda: export_hf(
            directory / "run", directory / "hf", dtype=float_dtype(dtype), options=options
        )
    )


def measure(root: Path, gigabytes: float, repeats: int) -> dict[str, object]:
    directory = Path(tempfile.mkdtemp(dir=root))
    try:
        measuring.check_room(directory, FREE_FACTOR * gigabytes * 1e9)
        measuring.in_child(__file__, "make", str(directory), str(gigabytes))
        runs = {
            measuring.COPY: ("copy", str(directory)),
            "export_fp32": ("export", str(directory), "fp32", "skip"),
            "export_bf16": ("export", str(directory), "bf16", "skip"),
            "verify_export_bf16": ("export", str(directory), "bf16", "verify"),
        }
        made = [directory / "copy", directory / "hf"]
        return measuring.compare(__file__, directory / "run", runs, made, repeats)
    finally:
        shutil.rmtree(directory)


def child(action: str, directory: Path, *arguments: str) -> None:
    if action == "make":
        measuring.say(lambda: make(directory, float(arguments[0])))
    elif action == "copy":
        measuring.say(lambda: measuring.copy(directory / "run", directory / "copy"))
    else:
        export(directory, *arguments)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 3, 6])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path())
    arguments = parser.parse_args()
    for gigabytes in arguments.gigabytes:
        print(json.dumps(measure(arguments.directory, gigabytes, arguments.repeats)), flush=True)


if __name__ == "__main__":
    main()
