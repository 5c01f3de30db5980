"""Collectives over the dims of a cluster: how long one takes for the axis that was spread over them.

Volumes V are the bytes of the whole array that an all-gather returns, that a reduce-scatter is given, that an all-
reduce sums, or (all-to-all) that all devices of the axis hold together.

Sources: Austin et al., "How to Scale Your Model" (2025), chapters "Sharded matrices" (rings: an all-gather takes V / W
over a wrapped axis with W bytes/s in both directions together, whatever its length; an all-to-all a quarter of it;
several torus axes add up) and "GPUs" (switches: V (n - 1) / n / W; node and network levels work at the same time, the
slower one counts).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxscale.hardware.cluster import Cluster, Dim
from jaxscale.planner.vocabulary.formula import Column, Formula, Number, larger


@dataclass(frozen=True)
class AxisLinks:
    """What an axis has to send over, per device.

    fast_bandwidth: bytes/s at which a device receives V inside nodes or slices (inf: the axis has no extent there).
    slow_bandwidth: the same between them, all devices of the axis that share a node or slice together (inf: none).
    slow_share: the part of V that comes from elsewhere, (k - 1) / k of k nodes.
    exchange_bandwidth: bytes/s of an all-to-all inside nodes or slices, as V over its time;
    slow_exchange_bandwidth: between them. neighbor_bandwidth: bytes/s from one device to
    the next.
    latency: seconds of its longest way.
    """

    size: int
    fast_bandwidth: float
    slow_bandwidth: float
    slow_share: float
    exchange_bandwidth: float
    slow_exchange_bandwidth: float
    neighbor_bandwidth: float
    latency: float


def axis_links(cluster: Cluster, factors: Sequence[int], strides: Sequence[int]) -> AxisLinks:
    """Links of an axis that takes `factors[i]` of dim i of the cluster, with `strides[i]` devices of that dim between
    two."""
    parts = [
        (dim, factor, stride)
        for dim, factor, stride in zip(cluster.dims, factors, strides, strict=True)
        if factor > 1
    ]
    fast = [part for part in parts if not part[0].slow]
    slow = [part for part in parts if part[0].slow]
    return AxisLinks(
        size=math.prod(factors),
        fast_bandwidth=sum(_bandwidth(*part) for part in fast) if fast else math.inf,
        slow_bandwidth=_slow_bandwidth(slow, math.prod(factor for _, factor, _ in fast)),
        slow_share=sum((factor - 1) / factor for _, factor, _ in slow),
        exchange_bandwidth=_exchange(fast, slow),
        slow_exchange_bandwidth=_slow_exchange(fast, slow),
        neighbor_bandwidth=min((dim.bandwidth for dim, _, _ in parts), default=math.inf),
        latency=_latency(fast, slow),
    )


def gather_seconds(volume: Formula, axis: str, collectives: Formula | float = 1) -> Formula:
    """An all-gather, or a reduce-scatter, of V bytes over a mesh axis; 0 where the axis has one device.

    collectives: that the volume is cut into, which wait for the longest way each.
    """
    fast = volume / Column(f"{axis}_fast_bandwidth", "B/s inside")
    slow = (
        volume
        * Column(f"{axis}_slow_share", "from elsewhere")
        / Column(f"{axis}_slow_bandwidth", "B/s between")
    )
    return larger(fast, slow) + collectives * Column(f"{axis}_latency", "s latency")


def reduce_seconds(volume: Formula, axis: str) -> Formula:
    """An all-reduce: a reduce-scatter and an all-gather."""
    return Number(2) * gather_seconds(volume, axis)


def wire_share(size: Formula) -> Formula:
    """The part of V that a device takes from others: (n - 1) / n."""
    return (size - 1) / size


def exchange_seconds(volume: Formula, axis: str, once: Formula | None = None) -> Formula:
    """An all-to-all of V bytes, all devices together.

    once: the part of V that crosses between nodes, where what several devices of a node want is sent there once.
    """
    fast = volume / Column(f"{axis}_exchange_bandwidth", "B/s exchanged")
    slow = volume / Column(f"{axis}_slow_exchange_bandwidth", "B/s exchanged between")
    between = slow if once is None else slow * once
    return larger(fast, between) + Column(f"{axis}_latency", "s latency")


def distinct_nodes(axis: str, choices: int) -> Formula:
    """Nodes of an axis that so many even and independent choices of its devices fall on, on average.

    Of n nodes n (1 - (1 - 1/n)^k), which is 1 + s + ... + s^(k - 1) with s = 1 - 1/n, what comes from elsewhere. (A
    cluster has one slow dim at most.)
    """
    elsewhere = Column(f"{axis}_slow_share", "from elsewhere")
    found: Formula = Number(1)
    for _ in range(choices - 1):
        found = 1 + elsewhere * found
    return found


def _wraps(dim: Dim, factor: int) -> bool:
    """Only an axis that goes all the way round finds its way back on links of its own."""
    return dim.wiring == "ring" and factor == dim.size


def _bandwidth(dim: Dim, factor: int, stride: int) -> float:
    """V over the time of an all-gather along one dim."""
    if dim.wiring == "switch":
        return dim.bandwidth * factor / (factor - 1)
    if _wraps(dim, factor):
        return 2 * dim.bandwidth
    # A line moves one way at a time; neighbors `stride` apart share their links with the axes between them.
    return dim.bandwidth * factor / (factor - 1) / stride


def _slow_bandwidth(slow: Sequence[tuple[Dim, int, int]], num_fast: int) -> float:
    """Every device has a port of its own: those of one node bring in their shares of V side by side."""
    return sum(dim.bandwidth for dim, _, _ in slow) * num_fast if slow else math.inf


def _exchange(fast: Sequence[tuple[Dim, int, int]], slow: Sequence[tuple[Dim, int, int]]) -> float:
    """Each device holds V / n and sends what belongs elsewhere."""
    size = math.prod(factor for _, factor, _ in (*fast, *slow))
    inside = (_exchange_bandwidth(*part, others=size // part[1]) for part in fast)
    return min(inside, default=math.inf)


def _slow_exchange(
    fast: Sequence[tuple[Dim, int, int]], slow: Sequence[tuple[Dim, int, int]]
) -> float:
    size = math.prod(factor for _, factor, _ in (*fast, *slow))
    between = (dim.bandwidth * size * factor / (factor - 1) for dim, factor, _ in slow)
    return min(between, default=math.inf)


def _exchange_bandwidth(dim: Dim, factor: int, stride: int, others: int) -> float:
    if dim.wiring == "switch":
        return dim.bandwidth * factor * others * factor / (factor - 1)
    ring = 8 * dim.bandwidth if _wraps(dim, factor) else 4 * dim.bandwidth / stride
    return ring * others


def _latency(fast: Sequence[tuple[Dim, int, int]], slow: Sequence[tuple[Dim, int, int]]) -> float:
    """Seconds of the longest way. A ring over nodes goes through every device of each of them (NCCL's ring)."""
    inside = sum(_hops(*part) * part[0].latency for part in fast)
    if any(part[0].wiring == "switch" for part in fast):
        inside *= math.prod(factor for _, factor, _ in slow)
    return inside + sum(_hops(*part) * part[0].latency for part in slow)


def _hops(dim: Dim, factor: int, stride: int) -> float:
    if dim.wiring == "switch":
        # A ring of neighbors: what NCCL does for gathers and scatters (NCCL 2.x, tuning of the ring algorithm).
        return factor - 1
    return factor / 2 if _wraps(dim, factor) else (factor - 1) * stride
