"""Directories are read wherever fsspec reaches, in as few bytes as a place is good at; imports write blocks to suit."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from cli_cases import call
from interop_cases import WIDE, write_hf

from jaxscale.checkpoint import Checkpointer, Keep
from jaxscale.checkpoint.stored import Box
from jaxscale.errors import UserError
from jaxscale.interop.byte_ranges import open_folder
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.hf_weights import open_weights
from jaxscale.interop.layout import whole
from jaxscale.interop.names import ReadNamed
from jaxscale.interop.param_stream import block_shape, read_order
from jaxscale.interop.safetensors_reader import read_box

REMOTE = "memory://models/tiny"


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[str]:
    """A directory in fsspec's own object store."""
    write_hf(tmp_path / "hf", num_shards=2)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "hf"), "/models/tiny", recursive=True)
    yield REMOTE
    store.rm("/models", recursive=True)


def test_a_directory_in_an_object_store_is_read_as_a_local_one(remote: str, tmp_path: Path) -> None:
    local, far = open_hf(str(tmp_path / "hf")), open_hf(remote)
    assert far.section == local.section
    assert far.tokenizer_files() == local.tokenizer_files()
    for path, spec in local.model.description.items():
        box = tuple(slice(size // 3, size) for size in spec.shape)
        np.testing.assert_array_equal(far.read(path, box), local.read(path, box))


def test_a_file_of_an_object_store_that_is_cut_is_named(remote: str) -> None:
    store = fsspec.filesystem("memory")
    name = "/models/tiny/model-00002-of-00002.safetensors"
    store.pipe(name, store.cat(name)[:-1])
    with pytest.raises(UserError, match=f"{remote}/model-00002-of-00002.safetensors is truncated"):
        open_hf(remote)


@pytest.mark.parametrize("shape", [(7, 600), (7, 5), (3, 4, 50), (9,)])
def test_boxes_are_the_same_by_ranges_and_by_whole_rows(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    values = np.random.default_rng(0).random(shape, np.float32)
    save_file({"a": np.zeros(3, "f4"), "b": values}, tmp_path / "model.safetensors")
    tensor = open_weights(open_folder(str(tmp_path)))["b"]
    boxes = [
        whole(shape),
        tuple(slice(size // 2, size // 2 + 1) for size in shape),
        tuple(slice(size // 3, size - 1) for size in shape),
        (*whole(shape[:-1]), slice(1, 3)),
    ]
    for box in boxes:
        np.testing.assert_array_equal(read_box(tensor, box), values[box])


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    write_hf(tmp_path)
    source = open_hf(str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"model\.safetensors ends before byte"):
        source.read("layers/mlp/up", (slice(1, 2), slice(0, 32), slice(0, 40)))


@pytest.mark.parametrize(
    ("shape", "order", "block"),
    [
        ((126, 16384, 53248), (0, 2, 1), (1, 16384, 256)),  # 208 blocks of 53,248 rows of theirs.
        ((126, 16384, 53248), (0, 1, 2), (1, 78, 53248)),
        ((126, 16384, 128, 128), (0, 2, 3, 1), (1, 16384, 2, 128)),
        ((128256, 16384), (0, 1), (256, 16384)),
        ((30, 576), (0, 1), (30, 576)),
        ((30, 100, 1000), (0, 2, 1), (30, 100, 1000)),
        ((10_000_000,), (0,), (3_333_334,)),
        ((), (), ()),
    ],
)
def test_blocks_are_small_and_lie_together_where_they_are_read(
    shape: tuple[int, ...], order: tuple[int, ...], block: tuple[int, ...]
) -> None:
    found = block_shape(shape, order, 2**22)
    assert found == block
    assert math.prod(found) <= 2**22


def test_the_order_of_reading_is_that_of_the_files(tmp_path: Path) -> None:
    write_hf(tmp_path)
    names = open_hf(str(tmp_path)).names
    assert read_order(names, "layers/mlp/up") == (0, 2, 1)  # [out, in] there, [in, out] here.
    assert read_order(names, "layers/attention/query") == (0, 2, 3, 1)
    assert read_order(names, "embedding/table") == (0, 1)


@pytest.mark.parametrize("elements", [1, 50])
def test_parameters_do_not_depend_on_how_much_is_read_at_once(
    elements: int, tmp_path: Path
) -> None:
    write_hf(tmp_path)
    source = open_hf(str(tmp_path))
    strips: list[Box] = []
    wholes: list[Box] = []
    reading = source.read_theirs
    in_strips = replace(source, strip_elements=elements, read_theirs=counted(reading, strips))
    at_once = replace(source, strip_elements=None, read_theirs=counted(reading, wholes))
    for path, spec in source.model.description.items():
        box = tuple(slice(size // 3, size) for size in spec.shape)
        np.testing.assert_array_equal(in_strips.read(path, box), at_once.read(path, box), path)
    assert len(strips) > 5 * len(wholes)


def counted(read: ReadNamed, boxes: list[Box]) -> ReadNamed:
    def read_and_count(name: str, box: Box) -> np.ndarray:
        boxes.append(box)
        return read(name, box)

    return read_and_count


def test_the_command_imports_gguf_and_says_that_it_was_quantized(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from gguf_cases import write_gguf

    tensors = write_hf(tmp_path / "hf")
    write_gguf(tmp_path / "a.gguf", WIDE, tensors, gguf.GGMLQuantizationType.Q8_0)
    arguments = ("import", "gguf", tmp_path / "a.gguf", tmp_path / "run", "--tokenizer")
    answer = call(*arguments, tmp_path / "hf")
    assert answer.status == 0, answer
    assert "weights were quantized (Q8_0)" in answer.err
    assert "llama3 of " in answer.out
    again = call(*arguments, tmp_path / "hf")
    assert (again.status, "is not empty" in again.err) == (2, True)
    with Checkpointer(tmp_path / "run/checkpoints", Keep()) as checkpoints:
        assert checkpoints.read_metadata(0)["imported"]["dequantized_from"] == ["Q8_0"]
