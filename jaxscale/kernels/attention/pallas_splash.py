"""Attention on a TPU by JAX's splash kernels, which skip blocks of keys that no query of a block can see.

They take one sequence with heads first, scores already scaled, and lengths that blocks divide. Masks are computed in
the kernel from positions, so no [sequence, sequence] array exists. What the backward pass needs carries the name by
which a rematerialization policy knows attention's residuals.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale.kernels.attention.form import Form, SegmentIds
from jaxscale.kernels.attention.residuals import NAME, residual
from jaxscale.kernels.pallas import interpreter, splash
from jaxscale.kernels.target import Target

_LANES = 128
BLOCK = 512


def splash_attention(
    query: Float[Array, "batch sequence heads head_dim"],
    key: Float[Array, "batch kv_sequence kv_heads head_dim"],
    value: Float[Array, "batch kv_sequence kv_heads head_dim"],
    segments: SegmentIds | None,
    form: Form,
    target: Target,
    *,
    block: int = BLOCK,
    detect_races: bool = False,
) -> Float[Array, "batch sequence heads head_dim"]:
    """See `api.attention`. block: queries, and keys, taken at a time, halved until it divides the lengths."""
    kernel = _kernel(
        (query.shape[1], key.shape[1], query.shape[2]), form, target, block, detect_races
    )
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scaled = (query.astype(wide) * form.scale).astype(query.dtype)
    rows = [array.swapaxes(1, 2) for array in (scaled, key, value)]
    of_both = () if segments is None else (splash().SegmentIds(q=segments[0], kv=segments[0]),)
    out = _attend(kernel, *rows, *of_both)
    attended: Float[Array, "batch sequence heads head_dim"] = out.swapaxes(1, 2)
    return attended


@jax.custom_vjp
def _attend(kernel: Any, *arrays: Any) -> jax.Array:
    """The kernel, over a batch. Its result is read only when the log-normalizers that its gradient needs are there.

    The kernel writes them to 128 lanes, of which one is kept. A compiler that may take that one out at any time does so
    at the end of the layer, and holds 512 bytes a query and head until then.
    """
    out: jax.Array = jax.vmap(kernel)(*arrays)
    return out


def _remember(kernel: Any, *arrays: Any) -> tuple[jax.Array, Any]:
    out, pull = jax.vjp(jax.vmap(kernel), *arrays)
    kept, tree = jax.tree.flatten(pull)
    rows = out.shape[:-1], jnp.float32
    (place,) = (i for i, leaf in enumerate(kept) if (leaf.shape, leaf.dtype) == rows)
    out, normalizers = jax.lax.optimization_barrier((out, kept[place]))
    # Named here: what is kept must be what stands behind the barrier.
    kept[place] = residual(normalizers)
    return out, jax.tree.unflatten(tree, kept)


def _differentiate(pull: Callable[[jax.Array], Any], to_out: jax.Array) -> Any:
    return None, *pull(to_out)


_attend.defvjp(_remember, _differentiate)


def _kernel(
    sizes: tuple[int, int, int], form: Form, target: Target, block: int, detect_races: object
) -> Any:
    """The kernel of one sequence. sizes: queries, keys, heads."""
    queries, keys, heads = sizes
    masks, shape = splash(), (queries, keys)
    if form.window is None:
        mask = masks.CausalMask(shape, offset=form.query_offset)
    else:
        mask = masks.LocalMask(shape, (form.window - 1, 0), offset=form.query_offset)
    rows, columns = _fitting(block, queries), _fitting(block, keys)
    # Its arrays are part of what is traced: concrete ones would be made on the devices, which need not be there.
    return masks.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=masks.BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            block_q_dq=rows,
            block_kv_dq=columns,
        ),
        attn_logits_soft_cap=form.softcap,
        residual_checkpoint_name=NAME,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpreter(target, detect_races=bool(detect_races)),
    )


def _fitting(block: int, length: int) -> int:
    """The largest of block, block / 2, ... that divides a multiple of 128."""
    assert length % _LANES == 0, f"a length of {length}"
    while length % block:
        block //= 2
    return block
