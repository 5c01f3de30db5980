"""What an export will write is known beforehand, for any size and number of processes."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.config.loading import load_model
from jaxscale.config.model_section import ModelSection
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


def llama_405b() -> list[TensorInfo]:
    return infos(load_model(CONFIGS / "llama3.1-405b.yaml", [])[0])


def deepseek_v3() -> list[TensorInfo]:
    """The tensors of DeepSeek-V3 as it is published (arXiv:2412.19437, section 4.2), without its extra head."""
    embed, heads, dense, expert, latent, query = 7168, 128, 18432, 2048, 512, 1536
    shapes = {
        "self_attn.q_a_proj": (query, embed),
        "self_attn.q_a_layernorm": (query,),
        "self_attn.q_b_proj": (heads * (128 + 64), query),
        "self_attn.kv_a_proj_with_mqa": (latent + 64, embed),
        "self_attn.kv_a_layernorm": (latent,),
        "self_attn.kv_b_proj": (heads * (128 + 128), latent),
        "self_attn.o_proj": (embed, heads * 128),
        "input_layernorm": (embed,),
        "post_attention_layernorm": (embed,),
    }

    def mlp(prefix: str, size: int) -> dict[str, tuple[int, ...]]:
        into = dict.fromkeys((f"{prefix}.gate_proj", f"{prefix}.up_proj"), (size, embed))
        return into | {f"{prefix}.down_proj": (embed, size)}

    sparse: dict[str, tuple[int, ...]] = {"mlp.gate": (256, embed)} | mlp("mlp.shared", expert)
    for number in range(256):
        sparse |= mlp(f"mlp.experts.{number}", expert)
    named: dict[str, tuple[int, ...]] = {"embed": (129_280, embed)}
    for layer in range(61):
        own = shapes | (mlp("mlp", dense) if layer < 3 else sparse)
        named |= {f"layers.{layer}.{name}": shape for name, shape in own.items()}
    named |= {"norm": (embed,), "head": (129_280, embed)}
    return [TensorInfo(name, shape, np.dtype(np.float16)) for name, shape in named.items()]


@pytest.mark.parametrize(
    ("tensors", "parameters", "count"),
    # Both sums are published.
    [
        (llama_405b(), 405_853_388_800, 126 * 9 + 3),
        (deepseek_v3(), 671e9, 3 * 12 + 58 * (9 + 1 + 3 + 256 * 3) + 3),
    ],
    ids=["405B", "671B"],
)
def test_hundreds_of_billions_of_parameters_are_planned_and_shared(
    tensors: list[TensorInfo], parameters: float, count: int
) -> None:
    shards = plan_shards(tensors, 5 * GB)
    assert [tensor for shard in shards for tensor in shard.tensors] == tensors
    total = sum(tensor.num_bytes for tensor in tensors)
    assert total == pytest.approx(BF16_BYTES * parameters, rel=0.001)
    assert all(sum(t.num_bytes for t in shard.tensors) <= 5 * GB for shard in shards)
    assert index(shards)["metadata"]["total_size"] == total
    assert len(index(shards)["weight_map"]) == count
    every = list(pieces(shards, 16 * 2**20))
    for processes in (2, 7, 256):
        parts = shares(every, processes)
        assert list(chain(*parts)) == every
        sizes = [sum(piece.num_bytes for piece in part) for part in parts]
        assert max(sizes) <= 1.05 * total / processes
        assert min(sizes) >= 0.95 * total / processes


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
    assert all(
        end % 8 == 0 for end in ends.values()
    )  # As the format asks, for readers that map files.
    for piece in pieces(shards, piece_bytes):
        assert piece.offset == ends[piece.shard.file]
        ends[piece.shard.file] += piece.num_bytes
        row_bytes = piece.tensor.shape[1]
        assert piece.num_bytes == (piece.stop - piece.start) * row_bytes
        assert piece.num_bytes <= max(piece_bytes, row_bytes)
    assert ends == {shard.file: shard.num_bytes for shard in shards}
