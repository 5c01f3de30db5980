"""How often the branches of a program's choices run, where a pipeline's schedule says it.

Every stage of a pipeline runs one program; which of its passes run in a tick, which stages have embedding and head, and
which places of a chunk hold a layer are choices that the device makes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

# What an instruction stands in: loops and choices, outermost first.
Path = tuple[str, ...]
LOOP, CHOICE = "while", "conditional"
_PASS = (LOOP,)
_ENDS = (LOOP, CHOICE)
_LAYER = (LOOP, CHOICE, LOOP)


@dataclass(frozen=True)
class TickShares:
    """Of a pipeline, mean over its stages. passes: the share of ticks in which a stage runs a pass of one kind.

    ends: of its forward (and backward) passes those with the embedding (or the head). layers: of a chunk's places those
    with a layer.
    """

    passes: Fraction
    ends: Fraction
    layers: Fraction

    def of(self, path: Path) -> Fraction | None:
        """How often a choice in the loop over ticks has something to do; None of any other choice."""
        return {_PASS: self.passes, _ENDS: self.ends, _LAYER: self.layers}.get(path)


def branch_shares(
    shares: TickShares | None, path: Path, lengths: Sequence[int], products: Sequence[bool]
) -> list[Fraction]:
    """How often each branch of a choice runs, of the times that the choice is made.

    lengths, products: of its branches, how long they are and whether they have matrix products. Where nothing is known
    the longest counts as if it always ran. Else branches with products, the kinds of layers of a model, run equally
    often, and one without runs the rest of the time; where none has any, the longest is the one that does something.
    """
    known = None if shares is None else shares.of(path)
    longest = [index == lengths.index(max(lengths)) for index in range(len(lengths))]
    if known is None:
        return [Fraction(one) for one in longest]
    working = list(products) if any(products) else longest
    if all(working):
        return [Fraction(1, len(working))] * len(working)
    rest = (1 - known) / (len(working) - sum(working))
    return [known / sum(working) if works else rest for works in working]
