"""How fast a process's own devices are: the same products of matrices in every process, timed while no step runs.

A slow device does not show in the times of steps: all processes wait for it in every collective, so they all have its.
Here nobody waits for anybody. What is slow may be a chip that is hot, or a host that is not let run.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_SIZE = 512
# Products of the first look, by which all processes choose how many take this long.
_FIRST_PRODUCTS, _MOST_PRODUCTS, _SECONDS = 2, 1 << 14, 0.02
# Looks that a median is taken over: one alone says little where a host is taken away for moments.
_WINDOW, _FEWEST = 8, 4
# Exchanges between two looks: few at first, then a tenth of those that there were, up to one look in a minute.
_LEAST_APART, _MOST_APART, _SHARE = 2, 120, 0.1


class Pace:
    """Looks of this process, and what all have seen. All processes call `look` and `learn` at the same exchanges."""

    def __init__(self) -> None:
        self._products, self._compiled = _FIRST_PRODUCTS, 0
        self._operands: list[Array] = []
        self._exchanges, self._next = 0, _LEAST_APART
        self._seen: deque[Sequence[float]] = deque(maxlen=_WINDOW)

    def look(self, behind: jax.Array) -> float:
        """Seconds that the devices take, where a look is due; else 0.

        behind: a result of the step that runs; the devices are free once it is there.
        """
        self._exchanges += 1
        if self._exchanges < self._next:
            return 0.0
        self._next = self._exchanges + apart(self._exchanges)
        if not self._operands:
            self._operands = _operands()
        jax.block_until_ready(behind)
        if self._compiled != self._products:
            self._run()
            self._compiled = self._products
        began = time.perf_counter()
        self._run()
        return time.perf_counter() - began

    def learn(self, seconds: Sequence[float]) -> None:
        """What every process has measured; zeros where there was no look."""
        if not all(seconds):
            return
        if self._products == _FIRST_PRODUCTS:
            self._products = products_for(sorted(seconds)[(len(seconds) - 1) // 2])
        else:
            self._seen.append(seconds)

    def medians(self) -> tuple[float, ...]:
        """Seconds of each process, over the newest looks; nothing before there are enough of them."""
        if len(self._seen) < _FEWEST:
            return ()
        return tuple(np.median(self._seen, axis=0).tolist())

    def _run(self) -> None:
        jax.block_until_ready([_chain(operand, self._products) for operand in self._operands])


def apart(exchanges: int) -> int:
    """Exchanges until the next look, behind so many."""
    return min(max(_LEAST_APART, int(_SHARE * exchanges)), _MOST_APART)


def products_for(seconds: float) -> int:
    """A power of two, so that restarts find its program, by what the first look of a usual process took."""
    doublings = round(math.log2(_SECONDS / seconds))
    wanted = _FIRST_PRODUCTS * 2.0**doublings
    # Not that of the first look, by which it is told.
    return int(min(max(wanted, 2 * _FIRST_PRODUCTS), _MOST_PRODUCTS))


def _operands() -> list[Array]:
    matrix = np.random.default_rng(0).standard_normal((_SIZE, _SIZE), np.float32)
    scaled = matrix / np.sqrt(_SIZE, dtype=np.float32)
    return [jax.device_put(scaled, device) for device in jax.local_devices()]


@partial(jax.jit, static_argnums=1)
def _chain(matrix: Float[Array, "rows columns"], products: int) -> Float[Array, "rows columns"]:
    def again(_index: int, x: Array) -> Array:
        return jnp.tanh(x @ matrix)

    result: Array = jax.lax.fori_loop(0, products, again, matrix)
    return result
