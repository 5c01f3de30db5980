"""Which part of which physical dim each mesh axis takes."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from jaxscale.errors import UserError
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.search.candidates import divisors
from jaxscale.planner.vocabulary.layout import AXES

Factors = tuple[int, ...]
Spread = dict[str, Factors]


def default_spread(cluster: Cluster, mesh: Mapping[str, int]) -> Spread:
    """Inner axes take inner dims, whole ones where they can.

    Raises UserError where the axis sizes cannot be laid over the dims.
    """
    free = [dim.size for dim in cluster.dims]
    fast = sum(not dim.slow for dim in cluster.dims)
    spread: Spread = {}
    for axis in reversed(AXES):
        spread[axis] = _take(mesh.get(axis, 1), free, fast)
        free = [left // taken for left, taken in zip(free, spread[axis], strict=True)]
    laid = all(math.prod(spread[axis]) == mesh.get(axis, 1) for axis in spread)
    if laid and math.prod(free) == 1:
        return spread
    found = next(spreads(tuple(dim.size for dim in cluster.dims), mesh), None)
    if found is None:
        raise UserError(_does_not_lie(cluster, mesh))
    return found


def spreads(dims: Factors, mesh: Mapping[str, int]) -> Iterator[Spread]:
    """Every way to lay the axes of a mesh over the dims."""
    sizes = tuple(mesh.get(axis, 1) for axis in reversed(AXES))
    for laid in _lay(sizes, dims):
        yield dict(zip(reversed(AXES), laid, strict=True))


def distinct_spreads(cluster: Cluster, mesh: Mapping[str, int]) -> Iterator[Spread]:
    """Those that differ by more than the names of dims that are alike."""
    alike = [
        (index, index + 1)
        for index, (first, second) in enumerate(itertools.pairwise(cluster.dims))
        if replace(first, name="") == replace(second, name="")
    ]
    for spread in spreads(tuple(dim.size for dim in cluster.dims), mesh):
        columns = list(zip(*spread.values(), strict=True))
        if all(columns[first] >= columns[second] for first, second in alike):
            yield spread


@functools.lru_cache(maxsize=100_000)
def _lay(sizes: tuple[int, ...], free: Factors) -> tuple[tuple[Factors, ...], ...]:
    """Factors of each axis along each dim; empty where they do not use the dims up."""
    if not sizes:
        return ((),) if math.prod(free) == 1 else ()
    return tuple(
        (taken, *rest)
        for taken in factors_of(sizes[0], free)
        for rest in _lay(sizes[1:], tuple(a // b for a, b in zip(free, taken, strict=True)))
    )


@functools.lru_cache(maxsize=100_000)
def factors_of(size: int, free: Factors) -> tuple[Factors, ...]:
    """Every way to write a size as a product of one divisor of each dim."""
    if not free:
        return ((),) if size == 1 else ()
    return tuple(
        (part, *rest)
        for part in divisors(math.gcd(size, free[0]))
        for rest in factors_of(size // part, free[1:])
    )


def _take(size: int, free: list[int], fast: int) -> Factors:
    """A whole dim of just this size if there is one among the first `fast`, else from the innermost on what divides."""
    if size in free[:fast]:
        return tuple(size if index == free.index(size) else 1 for index in range(len(free)))
    taken = []
    for left in free:
        part = math.gcd(size, left)
        taken.append(part)
        size //= part
    return tuple(taken)


def _does_not_lie(cluster: Cluster, mesh: Mapping[str, int]) -> str:
    sizes = " x ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "of 1 device"
    return (
        f"mesh {sizes} = {math.prod(mesh.values())} devices does not lie over {cluster.name}: "
        f"{' x '.join(str(dim.size) for dim in cluster.dims)} = {cluster.num_devices}"
    )
