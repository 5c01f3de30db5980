"""Columns of link speeds: of one spread, of many, and the best that an axis could have."""

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.costs.network import AxisLinks, axis_links
from jaxscale.planner.search.spread import Factors, Spread, distinct_spreads, factors_of
from jaxscale.planner.vocabulary.formula import Values
from jaxscale.planner.vocabulary.layout import AXES

NAMES = (
    "fast_bandwidth", "slow_bandwidth", "slow_share", "exchange_bandwidth", "slow_exchange_bandwidth",
    "neighbor_bandwidth", "latency",
)  # fmt: skip
# Less is better.
_COSTS = ("slow_share", "latency")
_UNLIMITED = 1e30


class Links:
    """Link speeds on one cluster, each found once. network: the share of a link's data sheet that collectives reach."""

    def __init__(self, cluster: Cluster, network: float) -> None:
        self._cluster, self._network = cluster, network
        self._dims = tuple(dim.size for dim in cluster.dims)
        self._of = functools.lru_cache(maxsize=None)(self._links)
        self.best = functools.lru_cache(maxsize=None)(self._best)
        self.spreads_of = functools.lru_cache(maxsize=None)(self._spreads_of)

    def columns(self, spreads: Sequence[Spread]) -> dict[str, Values]:
        """A column of each speed of each axis, a row a spread."""
        return as_columns(np.array([self._flat(spread) for spread in spreads]))

    def _spreads_of(self, sizes: tuple[int, ...]) -> tuple[tuple[Spread, ...], Values]:
        """The spreads of a mesh, and their speeds: [spreads, axes x speeds]."""
        mesh = dict(zip(AXES, sizes, strict=True))
        found = self._inside_first(tuple(distinct_spreads(self._cluster, mesh)))
        width = len(AXES) * len(NAMES)
        rows = [self._flat(spread) for spread in found]
        return found, np.array(rows).reshape(len(found), width)

    def _inside_first(self, found: tuple[Spread, ...]) -> tuple[Spread, ...]:
        """Only those that keep `tensor` off the slow network, if there are any.

        Its collectives wait between the products of every layer; nobody has published a run that lets them cross
        where they need not (Narayanan et al. 2021, takeaway 1).
        """
        if not any(dim.slow for dim in self._cluster.dims):
            return found
        inside = tuple(spread for spread in found if spread["tensor"][-1] == 1)
        return inside or found

    def _flat(self, spread: Spread) -> list[float]:
        row = self.row(spread)
        return [value for axis in AXES for value in row[axis]]

    def row(self, spread: Mapping[str, Factors]) -> dict[str, tuple[float, ...]]:
        """The speeds of each axis; inner axes come first along each dim."""
        strides, found = (1,) * len(self._dims), {}
        for axis in reversed(AXES):
            factors = spread[axis]
            found[axis] = self._of(factors, strides)
            strides = tuple(a * b for a, b in zip(strides, factors, strict=True))
        return found

    def best_columns(self, meshes: Mapping[str, Values]) -> dict[str, Values]:
        """What each axis could have if it were alone: no spread of the mesh is faster."""
        columns: dict[str, Values] = {}
        for axis in AXES:
            size = meshes[axis].astype(np.intp)
            # Marks, since sorting them takes longer.
            sizes = np.flatnonzero(np.bincount(size))
            table = np.array([self.best(one) for one in sizes.tolist()]).T
            index = np.searchsorted(sizes, size)
            columns |= {f"{axis}_{name}": table[at][index] for at, name in enumerate(NAMES)}
        return columns

    def _best(self, size: int) -> tuple[float, ...]:
        found = [
            self._of(factors, (1,) * len(self._dims)) for factors in factors_of(size, self._dims)
        ]
        if not found:
            return tuple(0.0 if name in _COSTS else _UNLIMITED for name in NAMES)
        pick = {name: min if name in _COSTS else max for name in NAMES}
        return tuple(pick[name](row[i] for row in found) for i, name in enumerate(NAMES))

    def _links(self, factors: Factors, strides: Factors) -> tuple[float, ...]:
        return self._scaled(axis_links(self._cluster, factors, strides))

    def _scaled(self, links: AxisLinks) -> tuple[float, ...]:
        values = []
        for name in NAMES:
            value = getattr(links, name)
            if name.endswith("bandwidth"):
                value = _UNLIMITED if math.isinf(value) else value * self._network
            values.append(value)
        return tuple(values)


def as_columns(rows: Values) -> dict[str, Values]:
    """Columns out of rows of [axes x speeds]."""
    names = [f"{axis}_{name}" for axis in AXES for name in NAMES]
    return dict(zip(names, rows.T, strict=True))
