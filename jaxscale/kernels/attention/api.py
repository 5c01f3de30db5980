"""Causal attention: which implementation runs, and the call."""

from collections.abc import Mapping

import jax
from jaxtyping import Array, Float

from jaxscale.kernels.attention import cudnn
from jaxscale.kernels.attention.decode import decode_attention
from jaxscale.kernels.attention.form import Form, SegmentIds, check_shapes
from jaxscale.kernels.attention.reference import reference_attention
from jaxscale.kernels.attention.residuals import residual
from jaxscale.kernels.attention.xla import Tiling, blocked_attention
from jaxscale.kernels.choice import Choice, first_willing, named

__all__ = ["SegmentIds", "attention", "choose", "decode_attention"]

_ORDER = {"gpu": ("cudnn", "xla")}


def attention(
    query: Float[Array, "batch sequence heads head_dim"],
    key: Float[Array, "batch kv_sequence kv_heads head_dim"],
    value: Float[Array, "batch kv_sequence kv_heads head_dim"],
    *,
    scale: float,
    segment_ids: SegmentIds | None = None,
    window: int | None = None,
    softcap: float | None = None,
    query_offset: int = 0,
    implementation: str = "auto",
    local: bool = False,
    platform: str | None = None,
) -> Float[Array, "batch sequence heads head_dim"]:
    """Causal softmax attention; query head n reads key head n // (heads / kv_heads).

    segment_ids: documents of the queries, and of the keys where they differ (None: the same). A query sees keys of its
    own document only; one that sees none gets zeros, and passes no gradient on.
    window, softcap, query_offset: see `Form`. platform: `jax.default_backend()` unless given.
    local: the arrays are this device's own (one device, or inside `shard_map`), so that layouts may be pinned.
    implementation: "auto", or a name that `choose` knows. Raises UserError for shapes that do not fit together, and for
    a named implementation that does not exist or declines.
    """
    form = Form(scale=scale, window=window, softcap=softcap, query_offset=query_offset)
    check_shapes(query, key, value, form)
    choice = choose(
        query,
        key,
        form,
        packed=segment_ids is not None,
        implementation=implementation,
        platform=platform,
    )
    if choice.name == "cudnn":
        return cudnn.cudnn_attention(query, key, value, form)
    if choice.name == "reference":
        return residual(reference_attention(query, key, value, segment_ids, form))
    on_cpu = (platform or jax.default_backend()) == "cpu"
    tiling = Tiling(pin_layouts=local and on_cpu)
    return blocked_attention(query, key, value, segment_ids, form, tiling)


def choose(
    query: jax.Array | jax.ShapeDtypeStruct,
    key: jax.Array | jax.ShapeDtypeStruct,
    form: Form,
    *,
    packed: bool = False,
    implementation: str = "auto",
    platform: str | None = None,
) -> Choice:
    """The implementation that `attention` runs for such arrays, and why not the others.

    packed: whether there are segment ids. "xla" is taken wherever "cudnn" declines; "reference" only when asked for.
    """
    platform = platform or jax.default_backend()
    reasons: Mapping[str, str | None] = {
        "cudnn": cudnn.reason_to_decline(query, key, form, packed=packed, platform=platform),
        "xla": None,
        "reference": None,
    }
    if implementation == "auto":
        return first_willing("attention", _ORDER.get(platform, ("xla",)), reasons)
    return named("attention", implementation, reasons)
