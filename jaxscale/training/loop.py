"""The train loop: batches in, steps on the device, and what is due after a step.

The loop runs one step ahead of what it knows: while the device computes step n, the host reads the metrics of step n-1
and prepares batch n+1. It waits for the device nowhere else, but where something is due.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jaxscale.telemetry.meter import StepMeter
from jaxscale.training.health.agreement import Agreement
from jaxscale.training.health.watchdog import Watchdog
from jaxscale.training.losses import Batch
from jaxscale.training.state import TrainState
from jaxscale.training.step import Metrics, StepFunction

HostMetrics = Mapping[str, float]


class Action(Protocol):
    """Something that happens between steps: evaluation, a checkpoint, a sample."""

    def __call__(self, done: int, state: TrainState) -> None:
        """`done` steps have been made; `state` is theirs."""


@dataclass(frozen=True)
class Due:
    """An action and its interval: every so many steps (0: never) and behind the last step.

    awaited: what of it is waited for, in words. stored_bytes: that this process may have to write for it.
    """

    every: int
    action: Action
    awaited: str
    stored_bytes: float = 0

    def now(self, done: int, last: int) -> bool:
        return done == last or (self.every > 0 and done % self.every == 0)


@dataclass(frozen=True)
class Loop:
    """The parts that a loop runs over. `observe` sees the metrics of every step, in order, once they are known."""

    step: StepFunction
    batches: Iterator[tuple[int, Mapping[str, np.ndarray]]]
    place: Callable[[Mapping[str, np.ndarray]], Batch]
    observe: Callable[[int, HostMetrics], None]
    actions: Sequence[Due]
    meter: StepMeter
    before_step: Callable[[int], None]
    after_step: Callable[[int, Any], None]
    agreement: Agreement
    watchdog: Watchdog


def run_loop(loop: Loop, state: TrainState, *, start: int, stop: int) -> TrainState:
    """Steps `start` to `stop` - 1; ends early, after a whole step, if the processes agree to."""
    behind: tuple[int, Metrics] | None = None
    done = start
    while done < stop and not loop.agreement.stop:
        began = time.perf_counter()
        with loop.meter.data_wait():
            index, rows = next(loop.batches)
        assert index == done, f"batch {index} for step {done}"
        loop.before_step(done)
        batch = loop.place(rows)
        own_seconds = time.perf_counter() - began
        state, metrics = loop.step(state, batch)
        done += 1
        loop.after_step(done, metrics)
        _observe(loop, behind)
        loop.agreement.learn()
        loop.agreement.after_step(done, own_seconds, metrics["loss"])
        behind = done, metrics
        due = [entry for entry in loop.actions if entry.now(done, stop)]
        if due:
            _observe(loop, behind)
            behind = None
        for entry in due:
            with loop.watchdog.during(entry.awaited, entry.stored_bytes):
                entry.action(done, state)
    _observe(loop, behind)
    return state


def _observe(loop: Loop, known: tuple[int, Metrics] | None) -> None:
    if known is None:
        return
    done, metrics = known
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    loop.meter.step_done()
    loop.watchdog.beat(done)
    loop.observe(done, values)
