"""Times of collectives in closed form, over rings of a torus and over trees of switches.

Source: Austin et al., "How to Scale Your Model" (2025), "Sharded matrices" (rings) and "GPUs" (switches). V is the
whole array in bytes: what an all-gather returns, what a reduce-scatter is given.
"""

from collections.abc import Sequence
from typing import Literal

Collective = Literal["AllGather", "ReduceScatter", "AllReduce", "AllToAll"]

# Over V / W of a wrapped axis with W bytes/s in both directions together.
RING_FACTORS: dict[Collective, float] = {
    "AllGather": 1.0,
    "ReduceScatter": 1.0,
    "AllReduce": 2.0,
    "AllToAll": 0.25,
}
# 370 GB/s of the 450 of an NVLink switch: the most that all-reduces of 10 GB reach ("GPUs", figure of bus bandwidth).
REACHED_SHARE = 370 / 450


def ring_seconds(collective: Collective, volume: float, link: float, *, axes: int = 1) -> float:
    """Over `axes` wrapped axes, whatever their length. link: bytes/s one way. "Sharded matrices", the table."""
    return RING_FACTORS[collective] * volume / (2 * link * axes)


def line_seconds(collective: Collective, volume: float, link: float, size: int) -> float:
    """Over one axis that does not wrap: n - 1 hops of a shard, one way. An all-to-all has half the bisection of a ring.

    "Sharded matrices", pop quiz 2 (all-gather).
    """
    if collective == "AllToAll":
        return volume / (4 * link)
    return RING_FACTORS[collective] * volume * (size - 1) / size / link


def hops(size: int, *, wraps: bool) -> int:
    """Links on the longest way between two devices of an axis."""
    return size // 2 if wraps else size - 1


def latency_seconds(size: int, hop: float, *, wraps: bool) -> float:
    return hops(size, wraps=wraps) * hop


def switch_seconds(collective: Collective, volume: float, port: float, size: int) -> float:
    """Between `size` devices of one switch with `port` bytes/s each way. "GPUs", collectives in a node."""
    gathered = volume * (size - 1) / size / port
    if collective == "AllToAll":
        return gathered / size
    return RING_FACTORS[collective] * gathered


def level_bandwidth(port: float, degree: int) -> float:
    """V over the time of an all-gather at one level of a tree: W D / (D - 1). "GPUs", cross-node collectives."""
    return port * degree / (degree - 1)


def tree_bandwidth(levels: Sequence[tuple[float, int]]) -> float:
    """The levels work at the same time, the slowest counts. levels: port bytes/s and degree of each."""
    return min(level_bandwidth(port, degree) for port, degree in levels if degree > 1)


def inner_sharded_seconds(
    volume: float, inner: int, *, node: int, nodes: int, node_egress: float
) -> float:
    """An all-gather over the outer axis of an array that an inner axis of `inner` devices has split already.

    "GPUs", pop quiz 3: splitting inside a node saves nothing between nodes; beyond it, each device has its own port.
    """
    if inner <= node:
        return volume * (nodes - 1) / (nodes * node_egress)
    return volume / (inner * node_egress / node)


def all_to_all_seconds(
    volume: float, *, port: float, node: int, node_egress: float, nodes: int
) -> float:
    """B / (N W) inside a node, B / (M W_node) over M of them: no hierarchy helps. "GPUs", the book's approximations."""
    return volume / (node * port) if nodes == 1 else volume / (nodes * node_egress)
