"""What is known of one attention call before it runs, and which kernels take it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax

from jaxscale.kernels.attention.form import Form, SegmentIds
from jaxscale.kernels.registry import Implementation
from jaxscale.kernels.target import Target, reason_without

# Segment ids: none, the same for queries and keys, or keys with their own.
Documents = Literal["none", "shared", "apart"]

_CUDNN_DTYPES = ("bfloat16", "float16")
_CUDNN_HEAD_DIM = 128
_LANES = 128


@dataclass(frozen=True)
class AttentionCall:
    """Sizes of one device's arrays. queries, keys: their lengths."""

    dtype: str
    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    form: Form
    documents: Documents = "none"

    @property
    def layout(self) -> str:
        words = ["causal" if self.form.window is None else "window"]
        words += ["softcap"] * (self.form.softcap is not None)
        words += ["documents"] * (self.documents != "none")
        return "_".join(words)

    @property
    def sizes(self) -> Mapping[str, int]:
        sizes = {"b": self.batch, "q": self.queries, "k": self.keys, "h": self.heads}
        sizes |= {"g": self.kv_heads, "d": self.head_dim}
        return sizes if self.form.window is None else sizes | {"w": self.form.window}


def call_of(
    query: jax.Array | jax.ShapeDtypeStruct,
    key: jax.Array | jax.ShapeDtypeStruct,
    form: Form,
    segments: SegmentIds | None = None,
) -> AttentionCall:
    """The facts of a call with such arrays."""
    documents: Documents = "none"
    if segments is not None:
        documents = "shared" if segments[1] is None else "apart"
    batch, queries, heads, head_dim = query.shape
    keys, kv_heads = key.shape[1:3]
    return AttentionCall(
        query.dtype.name, batch, queries, keys, heads, kv_heads, head_dim, form, documents
    )


def _no_cudnn(target: Target, call: AttentionCall) -> str | None:
    if target.platform != "gpu" or target.interpreted:
        return f"it needs an NVIDIA GPU, and this is {_place(target)}"
    if call.dtype not in _CUDNN_DTYPES:
        return f"it computes in bfloat16 or float16, not {call.dtype}"
    if call.head_dim > _CUDNN_HEAD_DIM or call.head_dim % 8:
        return f"head dimension {call.head_dim} is not a multiple of 8 up to {_CUDNN_HEAD_DIM}"
    return _no_cudnn_mask(call)


def _no_cudnn_mask(call: AttentionCall) -> str | None:
    if call.queries != call.keys:
        lengths = f"{call.queries} and {call.keys}"
        return f"its causal mask wants as many queries as keys, not {lengths}"
    if call.documents != "none":
        return "documents in a row would need a [sequence, sequence] bias in memory"
    return None if call.form.softcap is None else "it has no soft-cap"


def _no_splash(target: Target, call: AttentionCall) -> str | None:
    if target.platform != "tpu":
        return f"it needs a TPU, and this is {target.platform}"
    if call.dtype not in {"bfloat16", "float32"}:
        return f"it computes in bfloat16 or float32, not {call.dtype}"
    for name, length in (("queries", call.queries), ("keys", call.keys)):
        if length % _LANES:
            return f"{length} {name} are not a multiple of {_LANES}"
    if call.documents == "apart":
        return "a query whose document has no key would not get zeros"
    return reason_without(target)


def _place(target: Target) -> str:
    return "an interpreter" if target.interpreted else target.platform


def _never(_: Target, __: AttentionCall) -> None:
    return None


IMPLEMENTATIONS: tuple[Implementation[AttentionCall], ...] = (
    Implementation("pallas_splash", _no_splash),
    Implementation("cudnn", _no_cudnn),
    Implementation("xla", _never),
    Implementation("reference", _never),
)
