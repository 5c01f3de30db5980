"""What an import costs: peak resident memory and throughput, beside a plain copy of the same files. JSON lines.

    python scripts/bench/interop/importing.py --gigabytes 1 3 6 --directory /some/disk

Each source is a Llama of noise. Copy and import run in processes of their own, both flush what they wrote to the disk,
and both find the source outside of the page cache. Throughput is bytes of the source a second, without the start of
Python and its imports; `process_s` is with them.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import measuring
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
FREE_FACTOR = 3.2  # The source, its copy and its import, with float32 for bfloat16.


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


def run_import(directory: Path) -> None:
    """As the command does it."""
    from jaxscale.hardware.cpu_process import prepare_cpu_process

    prepare_cpu_process("float32")
    from jaxscale.interop.hf_import import open_hf
    from jaxscale.interop.run_directory import import_model

    measuring.say(lambda: import_model(open_hf(str(directory / "source")), directory / "run"))


def measure(root: Path, gigabytes: float, dtype: str, repeats: int) -> dict[str, object]:
    directory = Path(tempfile.mkdtemp(dir=root))
    try:
        measuring.check_room(directory, FREE_FACTOR * gigabytes * 1e9)
        make_source(directory / "source", gigabytes * 1e9, jnp.dtype(dtype))
        runs = {name: (name, str(directory)) for name in (measuring.COPY, "import")}
        made = [directory / "copy", directory / "run"]
        return measuring.compare(__file__, directory / "source", runs, made, repeats)
    finally:
        shutil.rmtree(directory)


def child(action: str, directory: Path) -> None:
    if action == measuring.COPY:
        measuring.say(lambda: measuring.copy(directory / "source", directory / "copy"))
    else:
        run_import(directory)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 3.0, 6.0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk to measure")
    arguments = parser.parse_args()
    for size in arguments.gigabytes:
        found = measure(arguments.directory, size, arguments.dtype, arguments.repeats)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
