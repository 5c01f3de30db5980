"""Peak memory and speed of `jaxscale import hf` on made-up Llamas, beside a plain copy of the same files.

    python scripts/bench/interop/importing.py [--gigabytes 1 3] [--dtype float32] [--work DIR]

For each size: bytes of the source and of the checkpoint, the import's peak resident memory, seconds, and seconds of
`cp` of as many bytes as were written, on the same disk in the same run.
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

import jax.numpy as jnp
import numpy as np

from jaxscale.config.model_section import ModelSection
from jaxscale.data.tokenizers import train_bpe
from jaxscale.interop.hf_config import to_hf_config
from jaxscale.interop.names import NameMap, Tensor, bind
from jaxscale.interop.safetensors_format import TensorInfo, header_bytes
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint

WIDTHS = {
    "family": "llama3",
    "vocab_size": 32_000,
    "max_positions": 2048,
    "embed_dim": 2048,
    "num_heads": 32,
    "num_kv_heads": 8,
    "mlp_dim": 5632,
}
BLOCK_ROWS = 1024


def make_source(folder: Path, num_bytes: float, dtype: np.dtype) -> int:
    """A Hugging Face directory of about `num_bytes`; returns its exact bytes of tensors."""
    layers = 1
    while count_bytes(layers + 1, dtype) <= num_bytes:
        layers += 1
    family, config = to_hf_config(section := ModelSection(num_layers=layers, **WIDTHS))
    names = bind(family.names, blueprint(model_builder(section)).description)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    train_bpe(["a text"], 257).save(folder)
    return write_tensors(folder / "model.safetensors", names, dtype)


def count_bytes(layers: int, dtype: np.dtype) -> int:
    model = blueprint(model_builder(ModelSection(num_layers=layers, **WIDTHS)))
    return sum(spec.size for spec in model.description.values()) * dtype.itemsize


def write_tensors(path: Path, names: NameMap, dtype: np.dtype) -> int:
    generator = np.random.default_rng(0)
    infos = [TensorInfo(one.name, one.shape, dtype) for one in names.tensors]
    with path.open("wb") as file:
        file.write(header_bytes(infos))
        for tensor in names.tensors:
            for rows in blocks(tensor):
                values = generator.random((rows, *tensor.shape[1:]), np.float32) - 0.5
                file.write(values.astype(dtype).tobytes())
    return sum(info.num_bytes for info in infos)


def blocks(tensor: Tensor) -> list[int]:
    full, rest = divmod(tensor.shape[0], BLOCK_ROWS)
    return [BLOCK_ROWS] * full + [rest] * bool(rest)


def run_import(source: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak resident bytes of the command in a process of its own."""
    command = [sys.executable, "-m", "jaxscale", "import", "hf", str(source), str(out)]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, f"the import failed: {status}"
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def run_copy(folder: Path, target: Path) -> float:
    """Seconds of a plain copy, flushed to the disk as a checkpoint is."""
    start = time.perf_counter()
    shutil.copytree(folder, target)
    for path in target.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return time.perf_counter() - start


def measure(gigabytes: float, dtype: np.dtype, work: Path) -> dict[str, float]:
    source, out, copy = work / "source", work / "run", work / "copy"
    num_bytes = make_source(source, gigabytes * 1e9, dtype)
    seconds, peak = run_import(source, out)
    written = sum(
        path.stat().st_size for path in (out / "checkpoints").rglob("*") if path.is_file()
    )
    copied = run_copy(out / "checkpoints", copy)
    for path in (source, out, copy):
        shutil.rmtree(path)
    return {
        "source_gb": num_bytes / 1e9,
        "checkpoint_gb": written / 1e9,
        "peak_mb": peak / 1e6,
        "seconds": seconds,
        "copy_seconds": copied,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for size in arguments.gigabytes:
            found = measure(size, jnp.dtype(arguments.dtype), Path(work))
            print(json.dumps({key: round(value, 2) for key, value in found.items()}))


if __name__ == "__main__":
    main()
