"""Name maps are exact in both directions, box by box."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_cases import names_of, random_tensors
from models_cases import section

from jaxscale.checkpoint.stored import Box
from jaxscale.interop.layout import copy_turned, make_layout, whole
from jaxscale.interop.names import NameMap, read_ours, read_theirs

Arrays = dict[str, np.ndarray]
MAPS = ("gpt2", "llama2, odd heads", "qwen2", "qwen3", "gemma2, odd layers")
FP32 = np.dtype(np.float32)


def some_box(data: st.DataObject, shape: tuple[int, ...]) -> Box:
    bounds = (data.draw(st.tuples(st.integers(0, n - 1), st.integers(1, n))) for n in shape)
    return tuple(slice(min(a, b - 1), max(a + 1, b)) for a, b in bounds)


def ours_of(names: NameMap, theirs: Arrays) -> Arrays:
    def read(name: str, box: Box) -> np.ndarray:
        return theirs[name][box]

    return {
        path: read_ours(names, path, whole(spec.shape), read, FP32)
        for path, spec in names.description.items()
    }


@cache
def both_sides(case: str) -> tuple[NameMap, Arrays, Arrays]:
    """The map of a case, random tensors, and the parameters that they are."""
    names, theirs = names_of(section(case)), random_tensors(section(case))
    return names, theirs, ours_of(names, theirs)


def test_a_merged_dim_is_split_where_einops_would() -> None:
    rows = np.arange(2 * 3 * 5).reshape(6, 5)  # Two heads of three, five wide.
    layout = make_layout(("embed", "heads", "head_dim"), (5, 2, 3), "(heads head_dim) embed")
    ours = layout.read_ours(whole((5, 2, 3)), lambda box: rows[box])
    assert ours[4, 1, 2] == rows[1 * 3 + 2, 4]
    assert ours.shape == (5, 2, 3)


def test_gpt2_keeps_queries_keys_and_values_beside_each_other() -> None:
    names = names_of(section("gpt2"))  # Width 21 of three heads of seven.
    fused = np.arange(21 * 63).reshape(21, 63)
    value = read_ours(
        names,
        "layers/attention/value",
        (slice(1, 2), slice(2, 3), slice(0, 1), slice(0, 7)),
        lambda name, box: fused[box] if name == "transformer.h.1.attn.c_attn.weight" else None,
        FP32,
    )
    assert value.ravel().tolist() == (2 * 63 + 42 + np.arange(7)).tolist()


@pytest.mark.parametrize("name", MAPS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_box_is_that_part_of_the_whole_in_both_directions(
    name: str, data: st.DataObject
) -> None:
    names, theirs, ours = both_sides(name)
    path = data.draw(st.sampled_from(sorted(ours)))
    box = some_box(data, ours[path].shape)
    read = read_ours(names, path, box, lambda their, inside: theirs[their][inside], FP32)
    np.testing.assert_array_equal(read, ours[path][box])
    tensor = data.draw(st.sampled_from(names.tensors))
    box = some_box(data, tensor.shape)
    read = read_theirs(tensor, box, lambda our, inside: ours[our][inside])
    np.testing.assert_array_equal(read, theirs[tensor.name][box])


def test_a_box_of_one_head_reads_the_rows_of_that_head_alone() -> None:
    names = names_of(section("llama3, grouped"))  # Six heads of six, 24 wide.
    asked: list[tuple[str, Box]] = []

    def read(name: str, box: Box) -> np.ndarray:
        asked.append((name, box))
        return np.zeros([r.stop - r.start for r in box])

    box = (slice(1, 2), slice(4, 8), slice(2, 3), slice(0, 6))
    read_ours(names, "layers/attention/query", box, read, FP32)
    assert asked == [("model.layers.1.self_attn.q_proj.weight", (slice(12, 18), slice(4, 8)))]


@given(
    st.permutations(range(3)),
    st.tuples(*[st.integers(1, 130)] * 3).filter(lambda s: np.prod(s) < 1e5),
)
@settings(max_examples=30, deadline=None)
def test_turning_in_pieces_is_a_plain_copy(order: list[int], shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).transpose(order)
    out = np.full(values.shape, np.nan, np.float32)
    copy_turned(out, values)
    np.testing.assert_array_equal(out, values)
