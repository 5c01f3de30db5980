"""One chunk of the loss, with its gradients and without, to be measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.cases import Case, moved_bytes
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.linear_cross_entropy.api import (
    Where,
    linear_cross_entropy,
    loss_and_gradients,
)
from jaxscale.kernels.linear_cross_entropy.form import IMPLEMENTATIONS, LossCall
from jaxscale.kernels.linear_cross_entropy.sums import LossOptions
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import Config

CANDIDATES: Mapping[str, Sequence[Config]] = {
    "pallas_gpu": (
        {"m": 128, "n": 128, "width": 4},
        {"m": 128, "n": 128, "width": 16},
        {"m": 128, "n": 128, "delay": 1},
        {"m": 64, "n": 256},
        {"m": 64, "n": 128, "stages": 6},
    ),
    "pallas_tpu": (
        {"m": 1024, "n": 1024, "k": 512},
        {"m": 512, "n": 1024, "k": 1024},
        {"m": 256, "n": 2048, "k": 1024},
    ),
}
# Of a table's rows: logits of about 1, as a trained model's.
_TABLE_SCALE = 0.02


def cases(tokens: int, embed: int, vocab: int, dtype: str) -> Iterator[Case]:
    """tokens: of a chunk. "logits": loss and both gradients, three products; "sums": the loss alone, one."""
    kind = jnp.dtype(dtype)
    hidden, table = (jax.ShapeDtypeStruct((rows, embed), kind) for rows in (tokens, vocab))
    operands = hidden, table, jax.ShapeDtypeStruct((tokens,), jnp.int32)
    for layout, products in (("logits", 3), ("sums", 1)):
        gradients = (hidden, jax.ShapeDtypeStruct((vocab, embed), jnp.float32))
        yield Case(
            op="linear_cross_entropy",
            call=LossCall(layout, dtype, tokens, embed, vocab),
            implementations=IMPLEMENTATIONS,
            flops=2.0 * products * tokens * embed * vocab,
            moved=moved_bytes((*operands, *(gradients if layout == "logits" else ()))),
            operands=operands,
            run=_runner(layout),
            candidates=CANDIDATES,
            draw=partial(_drawn, operands=operands),
        )


def _runner(layout: str) -> Callable[[Choice, Target], Callable[..., Any]]:
    loss = loss_and_gradients if layout == "logits" else linear_cross_entropy

    def run(choice: Choice, target: Target) -> Callable[..., Any]:
        where = Where(target=target, kernels=choice)

        def once(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
            return loss(hidden, table, targets, LossOptions(), hidden.shape[0], where)

        return once

    return run


def _drawn(
    key: jax.Array, operands: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normal states and rows, and targets as likely as each other."""
    hidden, table, targets = operands
    keys = jax.random.split(key, 3)
    states = jax.random.normal(keys[0], hidden.shape, jnp.float32)
    rows = _TABLE_SCALE * jax.random.normal(keys[1], table.shape, jnp.float32)
    wanted = jax.random.randint(keys[2], targets.shape, 0, table.shape[0], jnp.int32)
    return states.astype(hidden.dtype), rows.astype(table.dtype), wanted
