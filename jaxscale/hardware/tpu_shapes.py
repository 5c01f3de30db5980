"""Which slices of a TPU pod exist, and which of their dims are rings.

Sources: the Cloud TPU pages of each generation (tables of topologies), Cloud TPU 'Types and topologies' (AxBxC, all of
them 4 at most or all multiples of 4), xpk's table of slices (one shape for each number of chips), and for wrap-around
How to Scale Your Model, 'TPUs'.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jaxscale.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRule:
    """small: the shapes that a table lists, in any order of dims. cube: beyond them, every dim is a multiple of it.

    wrap: the length at which a dim of a table's shape closes into a ring. schedulable: chips of the largest slice that
    is rented out, where that is less than the pod's `max_chips`.
    """

    small: tuple[Shape, ...]
    cube: int = 0
    max_chips: int = 0
    schedulable: int = 0
    wrap: int = 0

    @property
    def num_dims(self) -> int:
        return len(self.small[0])

    @property
    def largest(self) -> int:
        """Chips of the largest slice that can be had."""
        return self.schedulable or self.max_chips or max(map(math.prod, self.small))

    def has(self, shape: Shape) -> bool:
        if sorted(shape) in map(sorted, self.small):
            return True
        return self._whole_cubes(shape) and math.prod(shape) <= self.max_chips

    def wraps(self, size: int, shape: Shape) -> bool:
        """Whether a dim of `size` in a slice of `shape` is a ring."""
        return size == self.wrap or self._whole_cubes(shape)

    def _whole_cubes(self, shape: Shape) -> bool:
        if not self.cube or len(shape) != self.num_dims:
            return False
        return all(size > 0 and size % self.cube == 0 for size in shape)

    def shapes(self, num_chips: int) -> Iterator[Shape]:
        """The shapes of exactly `num_chips`, the most cube-like first: what a cloud gives who asks for a number."""
        listed = [shape for shape in self.small if math.prod(shape) == num_chips]
        cubes = self._cube_shapes(num_chips) if num_chips <= self.max_chips else []
        yield from sorted({*listed, *cubes}, key=lambda shape: (max(shape), sum(shape)))

    def best(self, num_chips: int) -> Shape:
        return next(self.shapes(num_chips))

    def counts(self) -> list[int]:
        """Every number of chips that a slice can have, growing."""
        small = {math.prod(shape) for shape in self.small}
        if not self.cube:
            return sorted(small)
        volume = self.cube**3
        return sorted(small | {volume * n for n in range(1, self.max_chips // volume + 1)})

    def _cube_shapes(self, num_chips: int) -> list[Shape]:
        if not self.cube or num_chips % self.cube**3:
            return []
        cubes = num_chips // self.cube**3
        return [
            (self.cube * a, self.cube * b, self.cube * (cubes // a // b))
            for a in divisors(cubes)
            for b in divisors(cubes // a)
            if a <= b <= cubes // a // b
        ]


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def check_shape(name: str, family: str, shape: Shape, rule: ShapeRule) -> None:
    """Raises UserError where a generation has no such slice: what is possible, and the nearest ones."""
    if rule.has(shape):
        return
    near = " or ".join(f"{family}:{shape_text(s)}" for s in nearest_shapes(shape, rule))
    raise UserError(
        f"{name}: {_reason(shape, rule)}; {family} has {_possible(rule)}; nearest: {near}"
    )


def nearest_shapes(shape: Shape, rule: ShapeRule) -> list[Shape]:
    """The possible shapes nearest in number of chips, at most one below and one above."""
    wanted = math.prod(shape) if all(size > 0 for size in shape) else 1
    counts = rule.counts()
    below = [count for count in counts if count <= wanted]
    above = [count for count in counts if count >= wanted]
    ends = dict.fromkeys([*below[-1:], *above[:1]])
    return [rule.best(count) for count in ends]


def _reason(shape: Shape, rule: ShapeRule) -> str:
    if len(shape) != rule.num_dims:
        return f"{len(shape)} dims where a slice has {rule.num_dims}"
    chips = math.prod(shape)
    largest = rule.max_chips or rule.largest
    if chips > largest and min(shape) > 0:
        return f"{chips:,} chips, more than the {largest:,} of a pod"
    return "no such slice"


def _possible(rule: ShapeRule) -> str:
    listed = ", ".join(map(shape_text, rule.small))
    if not rule.cube:
        return listed
    cube = rule.cube
    return (
        f"{listed}, and three multiples of {cube} ({cube}x{cube}x{cube}, {cube}x{cube}x{2 * cube}, ...)"
        f" up to {rule.max_chips:,} chips"
    )
