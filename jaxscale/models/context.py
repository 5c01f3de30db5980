"""What the surroundings decide about a forward pass: placement of activations, rematerialization, kernels.

A model names the *meaning* of its activations (`constrain(x, "batch", "sequence", "mlp")`). Whoever runs it installs a
`ForwardContext` while tracing; without one, every hook is the identity and the model runs on a single device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxscale.kernels.target import Target

Axes = tuple[str | None, ...]
BlockFunction = Callable[..., Any]


def _unplaced(array: jax.Array, _axes: Axes) -> jax.Array:
    return array


class BlockHook(Protocol):
    """How a product meets a mesh: on blocks that each device has, or gathers, whole.

    operands: the logical axes of the dims of x, then of each weight (or activation, which has a `batch`); out: those of
    the result. Rows stay where they are, `embed` of a weight is gathered, and what devices have summed in part is
    summed over them.
    """

    def __call__(
        self, function: BlockFunction, operands: Sequence[Axes], out: Axes
    ) -> BlockFunction:
        """The function on arrays of the whole mesh."""

    def each(
        self, function: BlockFunction, operands: Sequence[Axes], outs: Sequence[Axes]
    ) -> BlockFunction:
        """The same for a function whose results are a list, one of x and each weight."""

    def look_up(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        """[batch, sequence, embed]: rows of the vocabulary's table."""

    def shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
        """Sizes of a device's block of an array of the whole mesh."""


def take_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """NaN for a row that the table does not have: the loss shows it, instead of training on a wrong row."""
    return jnp.take(table, rows, axis=0, mode="fill")


class _Whole:
    """One device: blocks are the arrays."""

    def __call__(
        self, function: BlockFunction, operands: Sequence[Axes], out: Axes
    ) -> BlockFunction:
        del operands, out
        return function

    def each(
        self, function: BlockFunction, operands: Sequence[Axes], outs: Sequence[Axes]
    ) -> BlockFunction:
        del operands, outs
        return function

    def look_up(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        return take_rows(table, rows)

    def shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
        del axes
        return shape


_WHOLE = _Whole()


def _on_all_heads(function: BlockFunction) -> BlockFunction:
    return function


def _keep_residuals(block: BlockFunction) -> BlockFunction:
    return block


@dataclass(frozen=True, kw_only=True)
class ForwardContext:
    """Hooks that a plan installs around a forward pass.

    constrain: places an activation by its logical axes.
    wrap_block: applies the rematerialization policy to the scanned block.
    over_heads: runs a function (query, key, value, segment ids) on each device's own heads.
    on_blocks: runs a function on each device's own blocks of its operands (see `BlockHook`).
    writes_collectives: whether all products with weights go through `on_blocks`, not only those of kernels: else the
    compiler's partitioner places the collectives of XLA's own.
    kernels: implementation by op name (`{"attention": "xla"}`), or one word for all ops; see `wanted`.
    layer_unroll: layers traced per iteration of the layer scan.
    local: whether arrays are whole on one device, so that kernels may choose their layout.
    platform: `cpu`, `gpu` or `tpu`; None asks JAX for its default.
    target: the same, and the kind of device.
    """

    constrain: Callable[[jax.Array, Axes], jax.Array] = _unplaced
    wrap_block: Callable[[BlockFunction], BlockFunction] = _keep_residuals
    over_heads: Callable[[BlockFunction], BlockFunction] = _on_all_heads
    on_blocks: "BlockHook" = _WHOLE
    writes_collectives: bool = False
    kernels: Mapping[str, str] | str = field(default_factory=dict)
    layer_unroll: int = 1
    local: bool = False
    platform: str | None = None
    target: Target | None = None

    def wanted(self, op: str) -> str:
        """What the plan says of an op's kernels: `auto`, `xla`, `pallas`, or an implementation's name."""
        if isinstance(self.kernels, str):
            return self.kernels
        return self.kernels.get(op, "auto")


_PLAIN = ForwardContext()
_current: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


def forward_context() -> ForwardContext:
    """The context that surrounds this trace."""
    return _current.get() or _PLAIN


@contextmanager
def use_forward_context(context: ForwardContext) -> Iterator[None]:
    """Install `context` for everything traced inside the `with` block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Place an activation by the logical axes of its dims (None: no meaning, never split)."""
    if len(axes) != array.ndim:
        raise ValueError(f"{len(axes)} axes {axes} for an array of shape {array.shape}")
    return forward_context().constrain(array, axes)
