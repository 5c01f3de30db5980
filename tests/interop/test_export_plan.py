"""What an export will write is known beforehand, for any size and number of processes."""

import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.config.loading import load_model
from jaxscale.config.model_section import ModelSection
from jaxscale.interop.crc import combine
from jaxscale.interop.hf_config import to_hf_config
from jaxscale.interop.names import bind
from jaxscale.interop.safetensors_format import TensorInfo
from jaxscale.interop.shards import index, pieces, plan_shards, shares
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint

CONFIGS = Path(__file__).parents[2] / "configs/models"
BF16_BYTES = 2
GB = 10**9


def infos(section: ModelSection) -> list[TensorInfo]:
    family, _ = to_hf_config(section)
    names = bind(family.names, blueprint(model_builder(section)).description)
    # Any type of two bytes stands for bfloat16 here.
    return [TensorInfo(one.name, one.shape, np.dtype(np.float16)) for one in names.tensors]


def llama_405b(**changes: int) -> ModelSection:
    section, _ = load_model(CONFIGS / "llama3.1-405b.yaml", [])
    return section.model_copy(update=changes)


@pytest.mark.parametrize(
    ("section", "parameters"),
    # 208 layers of the same make 671 billion parameters.
    [(llama_405b(), 405_853_388_800), (llama_405b(num_layers=208), 667e9)],
    ids=["405B", "671B"],
)
def test_hundreds_of_billions_of_parameters_are_planned_and_shared(
    section: ModelSection, parameters: float
) -> None:
    shards = plan_shards(infos(section), 5 * GB)
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    total = sum(tensor.num_bytes for tensor in tensors)
    assert total == pytest.approx(BF16_BYTES * parameters, rel=0.01)
    assert all(sum(t.num_bytes for t in shard.tensors) <= 5 * GB for shard in shards)
    assert len(index(shards)["weight_map"]) == len(tensors) == 9 * (section.num_layers or 0) + 3
    every = list(pieces(shards, 16 * 2**20))
    for count in (2, 7, 256):
        parts = shares(every, count)
        assert list(chain(*parts)) == every
        sizes = [sum(piece.num_bytes for piece in part) for part in parts]
        assert max(sizes) <= 1.05 * total / count
        assert min(sizes) >= 0.95 * total / count


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 400),
    st.integers(1, 100),
)
def test_pieces_tile_every_file_without_gaps(
    shapes: list[tuple[int, int]], max_bytes: int, piece_bytes: int
) -> None:
    tensors = [TensorInfo(f"t{n}", shape, np.dtype(np.int8)) for n, shape in enumerate(shapes)]
    shards = plan_shards(tensors, max_bytes)
    assert [tensor for shard in shards for tensor in shard.tensors] == tensors
    ends = {shard.file: len(shard.header) for shard in shards}
    for piece in pieces(shards, piece_bytes):
        assert piece.offset == ends[piece.shard.file]
        ends[piece.shard.file] += piece.num_bytes
        row_bytes = piece.tensor.shape[1]
        assert piece.num_bytes == (piece.stop - piece.start) * row_bytes
        assert piece.num_bytes <= max(piece_bytes, row_bytes)
    assert ends == {shard.file: shard.num_bytes for shard in shards}


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_the_sum_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    assert combine((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(b"".join(parts))
