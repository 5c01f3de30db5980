"""The largest number that fits, found by trying: doubled until one does not, then bisected."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Edge:
    """fits: the largest number seen to, 0 if none was. fails: the smallest seen not to, None if none was."""

    fits: int = 0
    fails: int | None = None

    @property
    def is_between(self) -> bool:
        return self.fits > 0 and self.fails is not None

    def following(self, start: int) -> int | None:
        """The number to try next; None where there is nothing more to learn."""
        if self.fails is None:
            return 2 * self.fits or start
        middle = (self.fits + self.fails) // 2
        return middle if middle > self.fits else None

    def __str__(self) -> str:
        if self.fails is None:
            return f"at least {self.fits}" if self.fits else "not found in time"
        if self.fits:
            return str(self.fits)
        return "none fits" if self.fails == 1 else f"fewer than {self.fails}"


def find_edge(
    fits: Callable[[int], bool | None], start: int, *, bisections: int = 2, runs: int = 12
) -> Edge:
    """Tries `start`, then doubles until a number does not fit, or halves until one does, then bisects.

    `fits(number)` is None where it cannot tell (no time, or a run that failed otherwise): what is known then is the
    answer. It is called at most `runs` times, `bisections` of them between a number that fits and one that does not.
    """
    edge = Edge()
    for _ in range(runs):
        number = edge.following(start)
        bisections -= edge.is_between
        if number is None or bisections < 0:
            break
        answer = fits(number)
        if answer is None:
            break
        edge = replace(edge, fits=number) if answer else replace(edge, fails=number)
    return edge
