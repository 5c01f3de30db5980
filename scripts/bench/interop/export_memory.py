"""What an export costs: peak resident memory and throughput, beside a plain copy of the same files. JSON lines.

    python scripts/bench/interop/export_memory.py --gigabytes 1 3 6 --directory /some/disk

Each checkpoint is a Llama in fp32 as 8-way FSDP stores it (every block holds an eighth of the rows of all layers),
of noise, so nothing compresses. Copy and export run in processes of their own, both flush what they wrote to the disk,
and both find the checkpoint outside of the page cache where the system lets us drop it. Throughput is bytes of the
checkpoint a second, without the start of Python and its imports; `process_s` is with them.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def copy(directory: Path) -> float:
    """Seconds of the call."""
    source, target = directory / "run", directory / "copy"
    start = time.perf_counter()
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        if path.is_file():
            flush(path)
    return time.perf_counter() - start


def export(directory: Path, dtype: str, integrity: str) -> float:
    """Seconds of the call."""
    from jaxscale.checkpoint.casting import float_dtype
    from jaxscale.interop.export_hf import export_hf
    from jaxscale.interop.export_job import ExportOptions

    options = ExportOptions(integrity="verify" if integrity == "verify" else "skip")
    start = time.perf_counter()
    export_hf(directory / "run", directory / "hf", dtype=float_dtype(dtype), options=options)
    return time.perf_counter() - start


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def drop_cache(directory: Path) -> None:
    """Takes files out of the page cache (Linux), so that nobody reads them from memory."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measured(directory: Path, *arguments: str) -> tuple[float, float, float]:
    """In a child process: seconds of the call, of the process, and peak resident megabytes."""
    drop_cache(directory / "run")
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", str(directory), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    process = time.perf_counter() - start
    seconds, peak = map(float, done.stdout.split())
    return seconds, process, peak


def measure(root: Path, gigabytes: float, repeats: int) -> dict[str, object]:
    directory = Path(tempfile.mkdtemp(dir=root))
    try:
        if shutil.disk_usage(directory).free < FREE_FACTOR * gigabytes * 1e9:
            raise SystemExit(f"{root} has no room for {FREE_FACTOR * gigabytes:.1f} GB")
        measured(directory, "make", str(gigabytes))
        stored = sum(p.stat().st_size for p in (directory / "run").rglob("*") if p.is_file())
        record: dict[str, object] = {"checkpoint_GB": round(stored / 1e9, 3)}
        runs = {
            "copy": ("copy",),
            "export_fp32": ("export", "fp32", "skip"),
            "export_bf16": ("export", "bf16", "skip"),
            "verify_export_bf16": ("export", "bf16", "verify"),
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, arguments in runs.items():
                found[name].append(measured(directory, *arguments))
                for made in ("copy", "hf"):
                    shutil.rmtree(directory / made, ignore_errors=True)
        copied = min(seconds for seconds, _, _ in found["copy"])
        for name, values in found.items():
            seconds = min(seconds for seconds, _, _ in values)
            record[name] = {
                "s": round(seconds, 2),
                "process_s": round(min(process for _, process, _ in values), 2),
                "peak_MB": round(max(peak for _, _, peak in values)),
                "GB_per_s": round(stored / 1e9 / seconds, 3),
                "of_copy": round(copied / seconds, 3),
            }
        return record
    finally:
        shutil.rmtree(directory)


def child(directory: Path, action: str, *arguments: str) -> None:
    seconds = 0.0
    if action == "make":
        make(directory, float(arguments[0]))
    elif action == "copy":
        seconds = copy(directory)
    else:
        seconds = export(directory, *arguments)
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    if "--child" in sys.argv:
        _, directory, action, *arguments = sys.argv[1:]
        child(Path(directory), action, *arguments)
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
