"""What is read off the text of a compiled program: loops, products, groups, kinds of collectives."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.planner.hlo.collectives import by_axes, collectives
from jaxscale.planner.hlo.execution import executed
from jaxscale.planner.hlo.groups import OTHER, device_groups, group_of
from jaxscale.planner.hlo.products import product_flops
from jaxscale.planner.hlo.text import Array, Instruction, Module, arrays, parse_module

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def flops(module: Module) -> float:
    return sum(
        each.times * (product_flops(each.computation, each.instruction) or 0.0)
        for each in executed(module)
    )


def with_groups(groups: str, opcode: str = "all-gather") -> Instruction:
    return Instruction(
        "x", opcode, (), (), "", f", channel_id=1, {groups}, dimensions={{0}}", False
    )


def in_entry(*lines: str) -> Module:
    return parse_module("\n".join(["ENTRY %main () -> f32[] {", *(f"  {x}" for x in lines), "}"]))


def test_shapes_lose_their_layouts_and_keep_their_bytes() -> None:
    text = "(bf16[4,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[3]{0}, s4[5]{0}, f32[], token[])"
    found = arrays(text)
    assert found == (
        Array("bf16", (4, 128)),
        Array("pred", (3,)),
        Array("s4", (5,)),
        Array("f32", ()),
    )
    assert [array.num_bytes for array in found] == [1024, 3, 3, 4]


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        # Numbers 0..7 as two rows of four, transposed: 0 4 1 5 2 6 3 7.
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", ("data", "fsdp")),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", ("tensor",)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", ("data", "fsdp")),
        ("replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'data','tensor'}", ("data", "tensor")),
        # The mesh's devices in the order 0 4 2 6 1 5 3 7: its outermost axis is the last one of ours.
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(2,1,0)) {'a'}", ("tensor",)),
        # Half an axis of four: the inner half of data and fsdp together.
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2}", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", ("data",)),
        # 0 with 3 differs along two axes, but four devices do.
        ("replica_groups={{0,3},{1,2},{4,7},{5,6}}", (OTHER,)),
    ],
)
def test_groups_are_named_by_the_axes_that_they_span(groups: str, axes: tuple[str, ...]) -> None:
    assert group_of(with_groups(groups), MESH).axes == axes


def test_every_device_is_in_one_group() -> None:
    spelled = (
        "replica_groups=[2,4]<=[4,2]T(1,0)",
        "replica_groups=mesh['a'=4,'b'=2] {'a'}",
        "replica_groups={{0,2,4,6},{1,3,5,7}}",
    )
    found = [device_groups(with_groups(text), 8).tolist() for text in spelled]
    assert found == [[[0, 2, 4, 6], [1, 3, 5, 7]]] * 3


def test_half_of_an_axis_is_not_the_axis() -> None:
    group = group_of(with_groups("replica_groups=[4,2]<=[8]"), {"data": 2, "fsdp": 4})
    assert (group.axes, group.size) == ((OTHER,), 2)


@pytest.mark.parametrize(
    ("pairs", "axes"),
    [
        ("{{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}}", ("tensor",)),
        ("{{0,4},{1,5},{4,0},{5,1}}", ("data",)),
        ("{{0,6},{6,0}}", ("data", "fsdp")),
    ],
)
def test_permutations_are_named_by_the_axes_that_they_move_along(
    pairs: str, axes: tuple[str, ...]
) -> None:
    moved = with_groups(f"source_target_pairs={pairs}", "collective-permute")
    assert group_of(moved, MESH).axes == axes


def test_an_asynchronous_pair_counts_once_with_the_bytes_of_the_whole_array() -> None:
    """CUDA's form: the start returns operands and results, two arrays gathered in one go."""
    module = in_entry(
        "%p = bf16[4,8]{1,0} parameter(0)",
        "%q = f32[2]{0} parameter(1)",
        "%s = ((bf16[4,8]{1,0}, f32[2]{0}), (bf16[8,8]{1,0}, f32[4]{0})) all-gather-start(%p, %q), "
        "replica_groups=[4,2]<=[8], dimensions={0}",
        "ROOT %d = (bf16[8,8]{1,0}, f32[4]{0}) all-gather-done(%s)",
    )
    (found,) = collectives(executed(module), MESH)
    assert (found.kind, found.axes, found.count) == ("all-gather", ("tensor",), 1)
    assert found.num_bytes == 8 * 8 * 2 + 4 * 4
    assert found.wire_bytes == found.num_bytes / 2


TPU_PIECES = """
%start (p: bf16[8]) -> (bf16[8], bf16[16], u32[]) {
  %p = bf16[8]{0} parameter(0)
  %g = bf16[16]{0} all-gather(%p), channel_id=3, replica_groups=[4,2]<=[8], frontend_attributes={chain_id="1"}
  ROOT %c = (bf16[8]{0}, bf16[16]{0}, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%beside (p: bf16[8]) -> bf16[16] {
  %p = bf16[8]{0} parameter(0)
  ROOT %g = bf16[16]{0} all-gather(%p), channel_id=3, replica_groups=[4,2]<=[8], frontend_attributes={chain_id="1"}
}

%done (p: bf16[8]) -> bf16[16] {
  %p = bf16[8]{0} parameter(0)
  %g = bf16[16]{0} all-gather(%p), channel_id=3, replica_groups=[4,2]<=[8], frontend_attributes={chain_id="1"}
  ROOT %c = bf16[16]{0} custom-call(%p, %g), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.5 (input: f32[64]) -> f32[32] {
  %input = f32[64]{0} parameter(0)
  %r = f32[64]{0} all-reduce(%input), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = f32[32]{0} dynamic-slice(%r, %zero), dynamic_slice_sizes={32}
}

ENTRY %main (x: bf16[8], y: f32[64]) -> f32[32] {
  %x = bf16[8]{0} parameter(0)
  %y = f32[64]{0} parameter(1)
  %a = (bf16[8]{0}, bf16[16]{0}, u32[]) fusion(%x), kind=kCustom, calls=%start
  %b = bf16[16]{0} fusion(%x), kind=kOutput, calls=%beside
  %c = bf16[16]{0} fusion(%x), kind=kCustom, calls=%done
  %kept = f32[64]{0} all-reduce(%y), channel_id=5, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %s = f32[32]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.5
}
"""


def test_a_tpu_collective_in_pieces_counts_once_and_a_scattered_reduction_is_a_reduce_scatter() -> (
    None
):
    found = collectives(executed(parse_module(TPU_PIECES)), MESH)
    assert [(each.kind, each.count, each.bytes_each) for each in found] == [
        ("all-reduce", 1, 256),
        ("reduce-scatter", 1, 256),
        ("all-gather", 1, 32),
    ]
    assert [each.wire_bytes for each in found] == [256, 128, 16]


SEPARATE = """
%gather (p: bf16[8]) -> bf16[16] {
  %p = bf16[8]{0} parameter(0)
  ROOT %g = bf16[16]{0} all-gather(%p), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
}

ENTRY %main (x: bf16[8]) -> bf16[16] {
  %x = bf16[8]{0} parameter(0)
  %t = token[] after-all()
  %s = (bf16[8]{0}, u32[]{:S(2)}, token[]) send(%x, %t), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %h = (bf16[8]{0}, u32[]{:S(2)}, token[]) send(%x, %t), channel_id=5, is_host_transfer=true
  %a = ((bf16[8]{0}, token[]), bf16[16]{0}) call-start(%x, %t), async_execution_thread="sparsecore", to_apply=%gather
  ROOT %d = bf16[16]{0} call-done(%a)
}
"""


def test_collectives_of_other_cores_and_between_slices_are_seen() -> None:
    """Forms of programs for v7x and for two slices of v5e; what goes to the host is no collective."""
    found = collectives(executed(parse_module(SEPARATE)), MESH)
    assert [(each.kind, each.axes, each.wire_bytes) for each in found] == [
        ("all-gather", ("tensor",), 16),
        ("send", ("slices",), 16),
    ]


def test_groups_of_one_device_send_nothing() -> None:
    module = in_entry(
        "%p = f32[4]{0} parameter(0)",
        "ROOT %r = f32[4]{0} all-reduce(%p), replica_groups=[8,1]<=[8], to_apply=%add",
    )
    assert collectives(executed(module), MESH) == ()


def test_equal_axes_are_summed() -> None:
    module = in_entry(
        "%p = f32[4]{0} parameter(0)",
        "%q = f32[6]{0} parameter(1)",
        "%r = f32[4]{0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add",
        "ROOT %s = f32[6]{0} all-reduce(%q), replica_groups=[4,2]<=[8], to_apply=%add",
    )
    found = collectives(executed(module), MESH)
    assert len(found) == 2
    (total,) = by_axes(found)
    assert (total.kind, total.axes, total.count, total.num_bytes) == (
        "all-reduce",
        ("tensor",),
        2,
        40,
    )


@pytest.mark.parametrize(
    ("start", "stop", "step", "trips"), [(0, 7, 1, 7), (3, 7, 1, 4), (0, 7, 3, 3), (2, 2, 1, 0)]
)
def test_trips_are_read_off_the_condition_where_the_compiler_noted_none(
    start: int, stop: int, step: int, trips: int
) -> None:
    """A loop of matrix products on CPU, whose notes are struck out."""

    def loop(x: jax.Array) -> jax.Array:
        def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return state[0] + step, jnp.sin(state[1] @ state[1])

        return jax.lax.while_loop(lambda state: state[0] < stop, body, (jnp.int32(start), x))[1]

    text = jax.jit(loop).lower(jnp.ones((4, 4))).compile().as_text()
    assert text is not None
    bare, struck = re.subn(r'"known_trip_count":\{[^}]*\},?', "", text)
    assert struck == (trips > 0)  # A loop that never runs is removed.
    for each in (text, bare):
        assert flops(parse_module(each)) == trips * 2 * 4**3


OUTLINED = """
%less (i: s32[], n: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %n = s32[] parameter(1)
  ROOT %lt = pred[] compare(%i, %n), direction=LE
}

%condition (state: (s32[], s32[], f32[4,4])) -> pred[] {
  %state = (s32[], s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] get-tuple-element(%state), index=1
  ROOT %call = pred[] call(%i, %n), to_apply=%less
}

%body (state: (s32[], s32[], f32[4,4])) -> (s32[], s32[], f32[4,4]) {
  %state = (s32[], s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] get-tuple-element(%state), index=1
  %x = f32[4,4]{1,0} get-tuple-element(%state), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %new = (s32[], s32[], f32[4,4]{1,0}) tuple(%next, %n, %y)
}

ENTRY %main (x: f32[4,4]) -> (s32[], s32[], f32[4,4]) {
  %x = f32[4,4]{1,0} parameter(0)
  %one = s32[] constant(1)
  %limit = s32[] constant(6)
  %start = (s32[], s32[], f32[4,4]{1,0}) tuple(%one, %limit, %x)
  ROOT %loop = (s32[], s32[], f32[4,4]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_a_limit_carried_along_and_a_comparison_in_a_call_are_understood() -> None:
    """1, 3 and 5 are at most 6."""
    assert flops(parse_module(OUTLINED)) == 3 * 2 * 4**3


def test_a_loop_of_unknown_length_counts_once_and_is_reported() -> None:
    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 100.0, lambda y: y @ y, x)

    text = jax.jit(loop).lower(jnp.ones((4, 4))).compile().as_text()
    assert text is not None
    module = parse_module(text)
    assert flops(module) == 2 * 4**3
    assert not all(each.exact for each in executed(module))


def test_nested_scans_multiply() -> None:
    def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.sin(x @ x), None

    def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jax.lax.scan(inner, x, length=3)[0], None

    lowered = jax.jit(lambda x: jax.lax.scan(outer, x, length=5)[0]).lower(jnp.ones((4, 4)))
    assert flops(parse_module(lowered.compile().as_text() or "")) == 15 * 2 * 4**3


def test_of_a_conditional_the_longest_branch_counts() -> None:
    def choose(which: jax.Array, x: jax.Array) -> jax.Array:
        chosen: jax.Array = jax.lax.cond(which, lambda: jnp.sin(x @ x) @ x, lambda: x + 1)
        return chosen

    text = jax.jit(choose).lower(jnp.bool_(True), jnp.ones((64, 64))).compile().as_text()
    assert flops(parse_module(text or "")) == 2 * 2 * 64**3


def test_a_batched_product_written_as_a_dilated_convolution_counts_as_that_product() -> None:
    """From a program for v5e: 4 x 2 products of [256, 32] and [32, 128]."""
    module = in_entry(
        "%q = bf16[4,2,256,32]{2,3,1,0:T(8,128)(2,1)} parameter(0)",
        "%k = bf16[4,2,128,32]{2,3,1,0:T(8,128)(2,1)} parameter(1)",
        "ROOT %c = f32[4,2,256,128]{2,3,1,0:T(8,128)} convolution(%q, %k), "
        "window={size=4x2 stride=3x1 lhs_dilate=4x2}, dim_labels=01bf_01oi->01bf",
    )
    assert flops(module) == 2 * (4 * 2) * 256 * 32 * 128


def test_heads_in_the_window_of_a_convolution_count_as_columns() -> None:
    """From a program for v5e: [4 x 256, 256] times [256, 4 heads of 32]."""
    module = in_entry(
        "%x = bf16[4,256,256,1]{2,1,3,0} parameter(0)",
        "%w = bf16[256,4,32,1]{0,2,1,3} parameter(1)",
        "ROOT %c = bf16[4,256,4,32]{1,3,2,0} convolution(%x, %w), "
        "window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
    )
    assert flops(module) == 2 * (4 * 256) * 256 * (4 * 32)


def test_a_convolution_does_not_count_its_padding() -> None:
    """Five outputs of a kernel of three: the first and the last meet two inputs, so 13 taps of 4 x 6 channels."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    text = jax.jit(convolve).lower(jnp.ones((2, 5, 4)), jnp.ones((3, 4, 6))).compile().as_text()
    assert flops(parse_module(text or "")) == 2 * 2 * 13 * 4 * 6


CUBLAS = (
    'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
)
LIBRARY_CALLS = [
    (CUBLAS, 2 * 16 * 64 * 8),
    (CUBLAS.replace(":[", ": ["), 2 * 16 * 64 * 8),
    ('custom_call_target="__onednn$matmul", backend_config={}', 2 * 16 * 64 * 8),
    ('custom_call_target="something_else"', 0),
]


@pytest.mark.parametrize(("attributes", "wanted"), LIBRARY_CALLS)
def test_library_products_count_by_their_shapes(attributes: str, wanted: float) -> None:
    module = in_entry(
        "%a = f32[16,64]{1,0} parameter(0)",
        "%b = f32[64,8]{1,0} parameter(1)",
        f"ROOT %c = (f32[16,8]{{1,0}}, s8[4096]{{0}}) custom-call(%a, %b), {attributes}",
    )
    assert flops(module) == wanted


def test_attention_of_cudnn_counts_the_half_that_a_causal_mask_leaves() -> None:
    """Forward two products over [2, 4, 128, 128] scores of heads of 64, backward five."""
    config = '"intermediate_tensor_shape": {"dimensions": ["2", "4", "128", "128"]}, "mask_type": "CAUSAL"'
    shape = "bf16[2,128,4,64]{3,1,2,0}"
    one_product = 2 * (2 * 4 * 128 * 128) * 64 / 2
    for name, products in (("fmhaSoftmax", 2), ("fmhaSoftmaxBackward", 5)):
        module = in_entry(
            f"%q = {shape} parameter(0)",
            f"ROOT %o = ({shape}, u8[0]{{0}}) custom-call(%q, %q, %q), "
            f'custom_call_target="__cudnn${name}", backend_config={{{config}}}',
        )
        assert flops(module) == products * one_product


def test_text_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="no HLO module"):
        parse_module("module @jit_step {}")


def test_products_of_a_program_agree_with_its_mathematics() -> None:
    """Contractions over several dims, batch dims and vectors: m n k of each by einsum's own letters."""
    sizes = {"a": 3, "b": 5, "c": 7, "d": 2, "e": 4}
    for equation in ("abc,cd->abd", "abc,abd->acd", "abcd,cde->abe"):
        left, right = equation.split("->")[0].split(",")
        operands = [jnp.ones([sizes[x] for x in term]) for term in (left, right)]
        text = jax.jit(lambda x, y, e=equation: jnp.einsum(e, x, y)).lower(*operands).compile()
        letters = np.array([sizes[x] for x in set(left + right)])
        assert flops(parse_module(text.as_text() or "")) == 2 * math.prod(letters)
