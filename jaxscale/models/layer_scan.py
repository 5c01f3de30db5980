"""Running stacked layers: one traced copy of the pattern's period, scanned over the rest."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Layer = Any  # A pytree with one leading `layers` dim on every leaf, or one slice of it.
Step = Callable[[Layer, jax.Array], tuple[jax.Array, Any]]


def scan_layers(
    steps: Sequence[Step], stacked: Layer, x: jax.Array, *, unroll: int = 1
) -> tuple[jax.Array, Any]:
    """Carry x through all layers in order; layer i runs `steps[i % len(steps)]`, so what a step does is static.

    stacked: pytree whose leaves have a leading `layers` dim. unroll: layers traced per iteration, at least one period.
    Returns x and what the steps returned beside it, stacked over layers. Layers after the last whole period follow
    unrolled.
    """
    period, num_layers = len(steps), jax.tree.leaves(stacked)[0].shape[0]
    num_groups = num_layers // period
    outputs = []
    if num_groups:
        grouped = jax.tree.map(lambda a: _group(a, num_groups, period), stacked)
        body = _group_body(steps)
        x, out = jax.lax.scan(body, x, grouped, unroll=min(max(1, unroll // period), num_groups))
        outputs.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out))
    for layer in range(num_groups * period, num_layers):
        x, out = steps[layer % period](_slice(stacked, layer), x)
        outputs.append(jax.tree.map(lambda a: a[None], out))
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _group(array: jax.Array, num_groups: int, period: int) -> jax.Array:
    whole = num_groups * period
    kept = array if array.shape[0] == whole else array[:whole]
    return kept.reshape(num_groups, period, *array.shape[1:])


def _group_body(steps: Sequence[Step]) -> Callable[[jax.Array, Layer], tuple[jax.Array, Any]]:
    def body(x: jax.Array, group: Layer) -> tuple[jax.Array, Any]:
        outputs = []
        for index, step in enumerate(steps):
            x, out = step(_slice(group, index), x)
            outputs.append(out)
        return x, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)

    return body


def _slice(stacked: Layer, index: int) -> Layer:
    return jax.tree.map(lambda a: a[index], stacked)
