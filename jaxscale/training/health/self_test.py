"""Whether every device gives the same answer: the same products on each, compared bit by bit.

A chip that computes wrongly now and then shows as a loss that is off, weeks later, or never. This finds one that does
so often; it takes a second.
"""

from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, UInt32

from jaxscale.errors import UserError
from jaxscale.training.health.hosts import host_names, named

_SIZE, _PRODUCTS = 512, 64
# Devices of a CPU share its cores: a check of eight pretended ones took 4 s of them.
_SIZE_ON_CPU = 256
# What a test does to the answer of a device.
Fault = Callable[[jax.Device, Array], Array]


class BadDevice(UserError):
    """A device gave another answer than the others of its kind."""


def check_devices(fault: Fault = lambda _device, answer: answer) -> None:
    """Raises BadDevice that names the devices in the minority; every process calls it, and every process raises."""
    answers = {
        device: int(jax.device_get(_fingerprint(fault(device, _products(_on(device))))))
        for device in jax.local_devices()
    }
    odd = _in_minority(_gathered(answers))
    if odd:
        hosts = host_names()
        found = "; ".join(f"device {device} of {named(process, hosts)}" for process, device in odd)
        raise BadDevice(
            f"devices that should give the same answer to {_PRODUCTS} products of matrices do not. Different from "
            f"most: {found}. Take its machine out of the run and have it looked at, then start again: checkpoints "
            "before the fault began are good"
        )


def _on(device: jax.Device) -> Float[Array, "rows columns"]:
    size = _SIZE_ON_CPU if device.platform == "cpu" else _SIZE
    matrix = np.random.default_rng(0).standard_normal((size, size), np.float32)
    placed: jax.Array = jax.device_put(matrix / np.sqrt(size, dtype=np.float32), device)
    return placed


@jax.jit
def _products(matrix: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """Each result goes into the next product, so that an error anywhere is in the last."""

    def again(_index: int, x: Array) -> Array:
        return jnp.tanh(2 * (x @ matrix))

    result: Array = jax.lax.fori_loop(0, _PRODUCTS, again, matrix)
    return result


@jax.jit
def _fingerprint(answer: Float[Array, "rows columns"]) -> UInt32[Array, ""]:
    """A number that changes with any bit: odd multiples of all words, added modulo 2^32."""
    words = jax.lax.bitcast_convert_type(answer, jnp.uint32).ravel()
    weights = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    total: Array = jnp.sum(words * weights, dtype=jnp.uint32)
    return total


def _gathered(answers: dict[jax.Device, int]) -> dict[tuple[int, int], tuple[str, int]]:
    """(process, device) -> (kind of device, answer), of all processes."""
    kinds = {device.id: device.device_kind for device in jax.devices()}
    mine = np.array([[device.id, answer] for device, answer in answers.items()], np.uint32)
    rows = mine[None]
    if jax.process_count() > 1:
        rows = np.asarray(multihost_utils.process_allgather(mine))
    return {
        (process, int(device)): (kinds[int(device)], int(answer))
        for process, found in enumerate(rows)
        for device, answer in found
    }


def _in_minority(
    answers: dict[tuple[int, int], tuple[str, int]],
) -> list[tuple[int, int]]:
    """Devices whose answer is not that of most of their kind; all of them where no answer is more frequent."""
    votes = Counter(answers.values())
    best = {kind: max(count for (of, _), count in votes.items() if of == kind) for kind, _ in votes}
    winners = {
        kind: [answer for (of, answer), count in votes.items() if of == kind and count == most]
        for kind, most in best.items()
    }
    return [
        where
        for where, (kind, answer) in sorted(answers.items())
        if len(winners[kind]) > 1 or answer != winners[kind][0]
    ]
