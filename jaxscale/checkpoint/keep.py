"""Which checkpoints stay on disk: a pure function of their steps and metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxscale.errors import UserError


@dataclass(frozen=True)
class Keep:
    """A checkpoint stays if any of these rules wants it.

    last: the newest this many, at least 1.
    every: those whose step is a multiple of this, for ever.
    best: this many with the best value of `metric`, by `mode`.
    """

    last: int = 3
    every: int | None = None
    best: int = 0
    metric: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UserError(f"keep.last is {self.last}; at least 1 checkpoint has to stay")
        if self.every is not None and self.every < 1:
            raise UserError(f"keep.every is {self.every} steps; give at least 1, or leave it out")
        if self.best < 0:
            raise UserError(f"keep.best is {self.best}; give 0 or more")
        if self.best and self.metric is None:
            raise UserError(f"keep.best is {self.best} but keep.metric is missing: best by what?")


def obsolete_steps(metrics: Mapping[int, float | None], keep: Keep) -> list[int]:
    """Steps that no rule wants, ascending.

    `metrics` maps each step on disk to its metric; None and NaN can never be among the best.
    Of equal metrics the newer step is the better one.
    """
    wanted = set(sorted(metrics)[-keep.last :])
    if keep.every is not None:
        wanted |= {step for step in metrics if step % keep.every == 0}
    wanted |= set(_best_steps(metrics, keep))
    return sorted(set(metrics) - wanted)


def _best_steps(metrics: Mapping[int, float | None], keep: Keep) -> list[int]:
    sign = 1 if keep.mode == "min" else -1
    ranked = sorted(
        (sign * value, -step)
        for step, value in metrics.items()
        if value is not None and not math.isnan(value)
    )
    return [-negative_step for _, negative_step in ranked[: keep.best]]
