"""One product of matrices in tiles, with what is done to a tile when it is summed: what both kernel languages share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax

# Which dims of the operands are summed over: left [m, k] or, transposed, [k, m]; right [k, n] or, transposed, [n, k].
Layout = Literal["nn", "nt", "tn"]

# Sums of each right operand, and the tiles of the extra operands, all in fp32 -> the tiles to write.
Finish = Callable[[tuple[jax.Array, ...], tuple[jax.Array, ...]], tuple[jax.Array, ...]]


@dataclass(frozen=True)
class Tiles:
    """Rows, columns and summed elements of one step of a kernel."""

    m: int
    n: int
    k: int

    def updated(self, config: Mapping[str, int]) -> "Tiles":
        """With the sizes that a tuning table gives."""
        sizes = {name: config.get(name, getattr(self, name)) for name in ("m", "n", "k")}
        return Tiles(**sizes)


@dataclass(frozen=True)
class TiledProduct:
    """What a kernel computes: finish(left @ right for each right, extras), written as `out_dtypes`.

    Extras are [m, n], or [1, n] for one row that every row meets. in_place: extras whose memory the first results
    take, one each, in this order.
    """

    layout: Layout
    finish: Finish
    out_dtypes: tuple[Any, ...]
    in_place: tuple[int, ...] = ()


def sizes_of(layout: Layout, left: jax.Array, right: jax.Array) -> tuple[int, int, int]:
    """(m, n, k) of two operands; asserts that they fit."""
    m, k = left.shape[::-1] if layout[0] == "t" else left.shape
    n, same = right.shape if layout[1] == "t" else right.shape[::-1]
    assert k == same, f"{layout}: {left.shape} does not meet {right.shape}"
    return m, n, k


def contracted(layout: Layout) -> tuple[tuple[tuple[int], tuple[int]], tuple[tuple[()], tuple[()]]]:
    """`dot_general`'s dimension numbers."""
    return ((0 if layout[0] == "t" else 1,), (1 if layout[1] == "t" else 0,)), ((), ())
