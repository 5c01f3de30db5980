"""Goodput: the share of a run's wall time, restarts and all, that went into steps that count."""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxscale.telemetry.journal import Event
from jaxscale.telemetry.ledger import KINDS, STARTUP, STEP

USEFUL, LOST, RESTART = "useful", "lost", "restart"
# In the order in which they are shown: useful first, then what took the rest.
SPLIT = (USEFUL, *(kind for kind in KINDS if kind != STEP), RESTART, LOST)


@dataclass(frozen=True)
class Goodput:
    """Where the time went, from the start of the first process to the last line of the last.

    seconds: by name of `SPLIT`; together `wall_seconds`. useful: steps whose result the run still has.
    lost: steps that were made again. restart: between two processes, and what a killed one had not yet told.
    lost_steps: how many were made again. first_step_seconds: of the newest process, from its start to its first
    step; None before that.
    """

    wall_seconds: float
    seconds: dict[str, float]
    num_processes: int
    lost_steps: int
    first_step_seconds: float | None

    @property
    def ratio(self) -> float:
        """Useful over wall time."""
        return self.seconds[USEFUL] / self.wall_seconds if self.wall_seconds else 0.0


@dataclass
class _Stretch:
    """Steps made in a row by one process: after each of `steps`, `seconds` of stepping since the process began.

    until: seconds of stepping when it was over, whatever the last of `steps` was.
    """

    steps: list[int]
    seconds: list[float]
    until: float

    def at(self, step: int) -> float:
        """Seconds of stepping until `step`, between two known ones by the rule of three."""
        after = bisect.bisect_right(self.steps, step)
        if after == len(self.steps):
            return self.until
        low, high = self.steps[after - 1], self.steps[after]
        share = (step - low) / (high - low)
        return self.seconds[after - 1] + share * (self.seconds[after] - self.seconds[after - 1])


@dataclass
class _Life:
    """What one process told."""

    born: float
    events: list[Event] = field(default_factory=list)


def goodput(events: Sequence[Event]) -> Goodput | None:
    """The account of a run by its diary; None for a run that told nothing yet."""
    lives = lives_of(events)
    if not lives:
        return None
    split = dict.fromkeys(SPLIT, 0.0)
    for life in lives:
        told = life.events[-1].seconds
        for kind in told.keys() & split.keys():
            split[kind] += told[kind]
    for before, after in itertools.pairwise(lives):
        gap = after.born - before.events[-1].time
        split[RESTART] += max(0.0, gap)
        # Two runs one after the other in one process (a notebook): its age is not all the second one's.
        split[STARTUP] -= min(max(0.0, -gap), after.events[-1].seconds.get(STARTUP, 0.0))
    split[USEFUL], split[LOST], lost_steps = _kept_and_lost(
        [s for life in lives for s in _stretches(life)]
    )
    return Goodput(
        wall_seconds=math.fsum(split.values()),
        seconds=split,
        num_processes=len(lives),
        lost_steps=lost_steps,
        first_step_seconds=_first_step(lives[-1]),
    )


def lives_of(events: Sequence[Event]) -> list[_Life]:
    """The processes of a run in order. Lines before the first `start` have lost theirs and count nowhere."""
    lives: list[_Life] = []
    for event in events:
        if event.kind == "start":
            lives.append(_Life(born=float(event.facts.get("born", event.time))))
        if lives:
            lives[-1].events.append(event)
    return lives


def _stretches(life: _Life) -> list[_Stretch]:
    stretches: list[_Stretch] = []
    for event in life.events:
        seconds = event.seconds.get(STEP, 0.0)
        if stretches:
            stretches[-1].until = seconds
        if event.kind == "resume":
            stretches.append(_Stretch([event.step], [seconds], seconds))
        elif stretches and event.step > stretches[-1].steps[-1]:
            stretches[-1].steps.append(event.step)
            stretches[-1].seconds.append(seconds)
    return stretches


def _kept_and_lost(stretches: Sequence[_Stretch]) -> tuple[float, float, int]:
    """Seconds of the steps that the run still has, seconds of the others, and how many steps were made again.

    A step counts where it was made last: a stretch keeps its steps up to the earliest place where a later one began.
    What it did behind its last step belongs to that one; a stretch that finished none keeps nothing.
    """
    useful = lost = 0.0
    lost_steps, kept_until = 0, math.inf
    for stretch in reversed(stretches):
        first, last = stretch.steps[0], stretch.steps[-1]
        end = int(max(first, min(last, kept_until)))
        kept = stretch.at(end) if end > first else stretch.seconds[0]
        useful += kept - stretch.seconds[0]
        lost += stretch.until - kept
        lost_steps += last - end
        kept_until = min(kept_until, first)
    return useful, lost, lost_steps


def _first_step(life: _Life) -> float | None:
    """Seconds from the start of a process to its first step, by the first line that is sure of one."""
    start = next((e.step for e in life.events if e.kind == "resume"), None)
    if start is None:
        return None
    first = next((e for e in life.events if e.step > start), None)
    return None if first is None else math.fsum(first.seconds.values())
