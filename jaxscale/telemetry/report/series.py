"""Curves made small enough to send and calm enough to read, and the ticks beside them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from jaxscale.telemetry.report.run import Points

T = TypeVar("T")

MAX_BUCKETS = 300
_LOG_TICKS = ((1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_MAX_TICKS = 6


def envelope(points: Points, buckets: int = MAX_BUCKETS) -> Points:
    """At most 2 x `buckets` points with every stretch's lowest and highest: no spike gets lost."""
    if len(points) <= 2 * buckets:
        return points
    kept: Points = []
    for stretch in _stretches(points, buckets):
        extremes = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(extremes)
    return kept


def bucket_means(points: Points, buckets: int = MAX_BUCKETS) -> Points:
    """At most `buckets` points: each stretch's mean, at its last step."""
    if len(points) <= buckets:
        return points
    return [
        (stretch[-1][0], math.fsum(value for _, value in stretch) / len(stretch))
        for stretch in _stretches(points, buckets)
    ]


def smoothed(points: Points) -> Points:
    """Mean over a stretch of a fiftieth of the curve centered at each point, so that it does not lag.

    Near the ends the stretch shrinks, staying centered.
    """
    sums = list(itertools.accumulate((value for _, value in points), initial=0.0))
    widest = max(len(points) // 100, 1)
    result: Points = []
    for i, (step, _) in enumerate(points):
        half = min(widest, i, len(points) - 1 - i)
        result.append((step, (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)))
    return result


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], at most six."""
    rough = (high - low) / (_MAX_TICKS - 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high] for a logarithmic axis, at most six where decades allow."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in _LOG_TICKS:
        ticks = [m * 10.0**e for e in exponents for m in mantissas if low <= m * 10.0**e <= high]
        if len(ticks) <= _MAX_TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / _MAX_TICKS)]


def evenly_chosen(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of `items`, first and last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def _stretches(points: Points, num: int) -> Iterator[Points]:
    edges = [len(points) * i // num for i in range(num + 1)]
    for start, end in itertools.pairwise(edges):
        yield points[start:end]
