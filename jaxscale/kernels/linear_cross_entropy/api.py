"""Next-token loss straight from hidden states and the output table.

The logits of `chunk_tokens` tokens exist at one time. Where a gradient is wanted it is formed in the same pass, which
takes three matrix products a chunk; the backward pass only scales it. `loss_from_logits` is the plain form that the
chunked one is tested against.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.choice import Choice
from jaxscale.kernels.layout import transposed_copy
from jaxscale.kernels.linear_cross_entropy.form import IMPLEMENTATIONS, LossCall
from jaxscale.kernels.linear_cross_entropy.logits import (
    Logits,
    RowSums,
    VocabAxis,
    first_column,
    logits_gradient,
    loss_sums,
    over_devices,
    real_vocab,
    row_sums,
)
from jaxscale.kernels.linear_cross_entropy.sums import LossOptions, LossSums
from jaxscale.kernels.local import check_local
from jaxscale.kernels.registry import choose
from jaxscale.kernels.target import Target, asked_for, target_of
from jaxscale.kernels.tuning import read

Hidden = Float[Array, "*rows embed"]
Table = Float[Array, "vocab embed"]
Targets = Int[Array, "*rows"]

TUNING = Path(__file__).parent / "tuning"

__all__ = [
    "TUNING",
    "LossOptions",
    "LossSums",
    "Where",
    "choose_kernel",
    "linear_cross_entropy",
    "loss_and_gradients",
    "loss_from_logits",
]


@dataclass(frozen=True)
class Where:
    """vocab_axis: mesh axes over which the table's rows are split, inside `shard_map`.

    target: what is compiled for; this process's devices unless given. kernels: see `choose_kernel`, or a choice already
    made. gathered: those of `vocab_axis` that split the tokens, too: `loss_and_gradients` gathers each chunk's tokens
    over them.
    """

    vocab_axis: VocabAxis = None
    target: Target | None = None
    kernels: str | Choice = "auto"
    gathered: tuple[str, ...] = ()


_HERE = Where()


def choose_kernel(call: LossCall, target: Target, wanted: str = "auto") -> tuple[Choice, Target]:
    """What forms the logits and their sums, and on which target (another one where an interpreter is wanted).

    wanted: see `registry.choose`, `interpret_tpu` and `interpret_gpu` beside. Raises UserError as `choose` does.
    """
    target, wanted = asked_for(target, wanted)
    choice = choose("linear_cross_entropy", IMPLEMENTATIONS, target, call, wanted, read(TUNING))
    return choice, target


def loss_from_logits(
    logits: Float[Array, "*rows vocab"], targets: Targets, options: LossOptions
) -> LossSums:
    """The plain loss of logits that exist, in fp32 (in their own dtype where it is wider)."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    flat, wanted = wide.reshape(-1, wide.shape[-1]), targets.reshape(-1)
    vocab_size = real_vocab(wide.shape[-1], options, None)
    return loss_sums(row_sums(flat, wanted, options), wanted, options, vocab_size)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def linear_cross_entropy(
    hidden: Hidden,
    table: Table,
    targets: Targets,
    options: LossOptions,
    chunk_tokens: int,
    where: Where = _HERE,
) -> LossSums:
    """Loss sums of logits = hidden @ table.T against targets.

    Differentiable in `hidden` and `table` through `loss_sum` alone: the other sums are statistics. chunk_tokens: the
    most tokens whose logits exist at one time. Pallas kernels need a device's own arrays, or raise UserError.
    """
    form = _form("sums", hidden, table, options, chunk_tokens, where)

    def add(total: LossSums, chunk: tuple[jax.Array, jax.Array]) -> tuple[LossSums, None]:
        states, wanted = chunk
        sums = form.sums(form.logits_and_rows(states, table, wanted)[1], wanted)
        return jax.tree.map(jnp.add, total, sums), None

    return jax.lax.scan(add, _no_loss(hidden), _chunks(hidden, targets, options, chunk_tokens))[0]


def loss_and_gradients(
    hidden: Hidden,
    table: Table,
    targets: Targets,
    options: LossOptions,
    chunk_tokens: int,
    where: Where = _HERE,
) -> tuple[LossSums, Hidden, Table]:
    """The loss sums, and the gradient of `loss_sum` by `hidden` (whole) and by this device's rows of `table` (fp32).

    All arrays are this device's own: one device, or inside `shard_map`. With `where.gathered` a chunk has
    `chunk_tokens` of all those devices together, and the sums are of all their tokens, the same on each.
    """
    form = _form("logits", hidden, table, options, chunk_tokens, where)
    turned = form.target.platform == "cpu" and hidden.dtype == jnp.bfloat16
    own_tokens = -(-chunk_tokens // int(jax.lax.psum(1, where.gathered)))
    states_of, targets_of = _chunks(hidden, targets, options, own_tokens)

    def of_chunk(states: jax.Array, wanted: jax.Array) -> tuple[LossSums, jax.Array, jax.Array]:
        states, wanted = _gathered(states, where), _gathered(wanted, where)
        logits, rows = form.logits_and_rows(states, table, wanted)
        assert logits is not None
        gradient = logits_gradient(logits, rows, wanted, options, where.vocab_axis)
        gradient = gradient.astype(hidden.dtype)
        to_table = _over_tokens(states, gradient, _wide(table), turned=turned)
        to_states = jnp.einsum("tv,ve->te", gradient, table, preferred_element_type=to_table.dtype)
        to_states = _over_vocab(to_states.astype(hidden.dtype), where)
        return form.sums(rows, wanted), to_table, to_states

    sums, to_table, to_states = _over_chunks(of_chunk, states_of, targets_of)
    flat = to_states.reshape(-1, hidden.shape[-1])[: targets.size]
    if turned:
        # Over one chunk XLA would turn the transposed sum into another product, which its CPU backend cannot run in
        # bfloat16 ("BF16 x BF16 = F32", JAX 0.10.2 and 0.12).
        to_table = jax.lax.optimization_barrier(to_table).T
    return sums, flat.reshape(hidden.shape), to_table


def _gathered(own: Array, where: Where) -> Array:
    """Of the tokens of all devices whose tokens a chunk takes."""
    return jax.lax.all_gather(own, where.gathered, tiled=True) if where.gathered else own


def _over_vocab(
    part: Float[Array, "tokens embed"], where: Where
) -> Float[Array, "own_tokens embed"]:
    """Summed over the devices that split the vocabulary, for this device's own tokens of the chunk."""
    if where.gathered:
        part = jax.lax.psum_scatter(part, where.gathered, tiled=True)
    axes = where.vocab_axis or ()
    others = tuple(
        axis for axis in ((axes,) if isinstance(axes, str) else axes) if axis not in where.gathered
    )
    return jax.lax.psum(part, others) if others else part


def _over_chunks(
    of_chunk: Callable[[jax.Array, jax.Array], tuple[LossSums, jax.Array, jax.Array]],
    states_of: Float[Array, "chunks tokens embed"],
    targets_of: Int[Array, "chunks tokens"],
) -> tuple[LossSums, jax.Array, jax.Array]:
    """The sums of what `of_chunk` gives first and second, and what it gives third in the place of the chunk's states.

    The first chunk is no addition to zeros: a compiler for TPUs sets their buffer aside from the beginning of the step.
    """

    def put(places: jax.Array, to_states: jax.Array, index: Any) -> jax.Array:
        # The chunk's states are not needed again.
        put_in: jax.Array = jax.lax.dynamic_update_index_in_dim(places, to_states, index, 0)
        return put_in

    def add(carry: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        sums, to_table, places = carry
        index, wanted = chunk
        states = jax.lax.dynamic_index_in_dim(places, index, keepdims=False)
        more, part, to_states = of_chunk(states, wanted)
        added = jax.tree.map(jnp.add, sums, more), to_table + part
        return (*added, put(places, to_states, index)), None

    sums, to_table, to_states = of_chunk(states_of[0], targets_of[0])
    start = sums, to_table, put(states_of, to_states, 0)
    if len(targets_of) == 1:
        return start
    rest = jnp.arange(1, len(targets_of)), targets_of[1:]
    summed: tuple[LossSums, jax.Array, jax.Array] = jax.lax.scan(add, start, rest)[0]
    return summed


def _over_tokens(
    states: Float[Array, "tokens embed"],
    gradient: Float[Array, "tokens vocab"],
    dtype: Any,
    *,
    turned: bool,
) -> Float[Array, "rows columns"]:
    """gradient.T @ states: [vocab, embed], or `turned` [embed, vocab], which CPUs need to multiply bfloat16 fast."""
    if turned:
        operands = transposed_copy(states), gradient
        return jnp.einsum("et,tv->ev", *operands, preferred_element_type=dtype)
    return jnp.einsum("tv,te->ve", gradient, states, preferred_element_type=dtype)


def _remember(
    hidden: Hidden,
    table: Table,
    targets: Targets,
    options: LossOptions,
    chunk_tokens: int,
    where: Where,
) -> tuple[LossSums, tuple[Hidden, Table]]:
    sums, *gradients = loss_and_gradients(hidden, table, targets, options, chunk_tokens, where)
    return sums, (gradients[0], gradients[1].astype(table.dtype))


def _scale(
    _options: LossOptions,
    _chunk_tokens: int,
    _where: Where,
    gradients: tuple[Hidden, Table],
    cotangent: LossSums,
) -> tuple[Hidden, Table, None]:
    to_hidden, to_table = (
        gradient * cotangent.loss_sum.astype(gradient.dtype) for gradient in gradients
    )
    return to_hidden, to_table, None


linear_cross_entropy.defvjp(_remember, _scale)


@dataclass(frozen=True)
class _Form:
    """One chunk's logits and sums, by the kernel chosen for them."""

    choice: Choice
    target: Target
    options: LossOptions
    vocab_axis: VocabAxis
    vocab_size: int
    keep_logits: bool

    def logits_and_rows(
        self, states: Float[Array, "tokens embed"], table: Table, targets: Int[Array, " tokens"]
    ) -> tuple[Logits | None, RowSums]:
        if self.choice.name == "xla":
            logits = _logits(states, table)
            gather = self.target.platform != "tpu"
            return logits, row_sums(logits, targets, self.options, self.vocab_axis, gather=gather)
        kept, sums = self._kernel()(
            states,
            table,
            targets,
            self.options,
            self.target,
            first_column=first_column(table.shape[0], self.vocab_axis),
            real_vocab=self.vocab_size,
            keep_logits=self.keep_logits,
        )
        return kept, over_devices(sums, self.vocab_axis)

    def _kernel(self) -> Callable[..., tuple[Logits | None, RowSums]]:
        """The Pallas kernel, with its tiles."""
        if self.choice.name == "pallas_gpu":
            from jaxscale.kernels.linear_cross_entropy import pallas_gpu

            gpu_tiles = pallas_gpu.TILES.updated(self.choice.config)
            return partial(pallas_gpu.logits_and_sums, tiles=gpu_tiles)
        from jaxscale.kernels.linear_cross_entropy import pallas_tpu

        tiles = pallas_tpu.TILES.updated(self.choice.config)
        return partial(pallas_tpu.logits_and_sums, tiles=tiles)

    def sums(self, rows: RowSums, targets: Int[Array, " tokens"]) -> LossSums:
        return loss_sums(rows, targets, self.options, self.vocab_size)


def _form(
    layout: str, hidden: Hidden, table: Table, options: LossOptions, chunk_tokens: int, where: Where
) -> _Form:
    own_tokens = hidden.size // hidden.shape[-1]
    tokens = min(chunk_tokens, own_tokens * int(jax.lax.psum(1, where.gathered)))
    call = LossCall(layout, hidden.dtype.name, tokens, hidden.shape[-1], table.shape[0])
    target = where.target or target_of()
    if isinstance(where.kernels, Choice):
        choice, target = where.kernels, where.kernels.target or target
    else:
        choice, target = choose_kernel(call, target, where.kernels)
    if choice.name != "xla":
        check_local("linear_cross_entropy", hidden, table)
    vocab_size = real_vocab(table.shape[0], options, where.vocab_axis)
    return _Form(choice, target, options, where.vocab_axis, vocab_size, layout == "logits")


def _logits(states: Float[Array, "tokens embed"], table: Table) -> Float[Array, "tokens vocab"]:
    return jnp.einsum("te,ve->tv", states, table, preferred_element_type=_wide(states))


def _wide(array: jax.Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)


def _no_loss(hidden: Hidden) -> LossSums:
    zero = jnp.zeros((), _wide(hidden))
    return LossSums(zero, zero, zero)


def _chunks(
    hidden: Hidden, targets: Targets, options: LossOptions, chunk_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Tokens in equal chunks of at most `chunk_tokens`; the last one is filled up with tokens that are ignored."""
    num_tokens, embed = targets.size, hidden.shape[-1]
    num_chunks = -(-num_tokens // chunk_tokens)
    size = -(-num_tokens // num_chunks)
    fill = num_chunks * size - num_tokens
    states = jnp.pad(hidden.reshape(num_tokens, embed), ((0, fill), (0, 0)))
    wanted = jnp.pad(targets.reshape(num_tokens), (0, fill), constant_values=options.ignore)
    return states.reshape(num_chunks, size, embed), wanted.reshape(num_chunks, size)
