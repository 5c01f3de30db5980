"""Steps that went wrong: how they are told, and what a run remembers of them so that a resume makes the same steps.

A loss that is not finite, or far above those before it, is bad. What follows is `training.on_bad_step`. Going back
drops every batch since the checkpoint, the bad one included, and goes on with those behind it: a spike comes of a batch
and the state that met it, and both are other ones then (PaLM, Chowdhery et al. 2022, section 5.1).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from jaxscale.data.loader import Batches, leave_out

# Losses that a spike is judged by, and how many there have to be.
_WINDOW, _FEWEST = 64, 16


@dataclass(frozen=True)
class History:
    """What a run remembers beside its state; every checkpoint has it, so that resuming repeats the same decisions.

    skipped: ranges of batches that are left out; bad_steps: how many steps were bad; losses: the newest, only kept
    where spikes are looked for.
    """

    skipped: tuple[tuple[int, int], ...] = ()
    bad_steps: int = 0
    losses: tuple[float, ...] = ()

    def to_metadata(self) -> dict[str, Any]:
        return {
            "skipped_batches": [list(pair) for pair in self.skipped],
            "bad_steps": self.bad_steps,
            "recent_losses": list(self.losses),
        }

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """An empty one from a checkpoint that has none."""
        saved = metadata.get("history", {})
        return cls(
            tuple((start, stop) for start, stop in saved.get("skipped_batches", ())),
            saved.get("bad_steps", 0),
            tuple(saved.get("recent_losses", ())),
        )

    def counted(self) -> Self:
        """With one bad step more."""
        return replace(self, bad_steps=self.bad_steps + 1)

    def with_loss(self, loss: float) -> Self:
        return replace(self, losses=(*self.losses, loss)[-_WINDOW:])

    def gone_back(self, batches: Batches, to_step: int, bad_step: int) -> Self:
        """Without the batches of steps `to_step` to `bad_step`.

        batches: in the order of the run until now, which `self` has to be the history of.
        """
        first, last = batches.number_of(to_step), batches.number_of(bad_step)
        skipped = leave_out(self.skipped, first, last + 1)
        return replace(self, skipped=skipped, bad_steps=self.bad_steps + 1)


def why_bad(
    metrics: Mapping[str, float], before: Sequence[float], spike: float | None
) -> str | None:
    """What is wrong with a step, or None.

    before: losses of the steps before it; spike: the multiple of their median that is too much (None: no loss is).
    """
    if not metrics["finite"]:
        return "is not finite"
    if spike is None or len(before) < _FEWEST:
        return None
    usual = statistics.median(before)
    if math.isfinite(usual) and metrics["loss"] > spike * usual:
        return f"is {metrics['loss']:.4g}, over {spike:g} times the median of {len(before)} before it, {usual:.4g}"
    return None


class RollBack(Exception):
    """Step `done` was bad: back to the checkpoint before it."""

    def __init__(self, done: int, why: str) -> None:
        super().__init__(why)
        self.done, self.why = done, why
