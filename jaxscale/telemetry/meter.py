"""Where the training loop's wall time goes, by the host's clock."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxscale.telemetry.ledger import CHECKPOINT, DATA_WAIT, EVALUATION, STEP, TimeLedger


@dataclass
class _Window:
    started: float
    num_steps: int = 0
    data_wait: float = 0.0
    checkpoint: float = 0.0
    excluded: float = 0.0


class StepMeter:
    """Averages over the steps since the last report; what happens inside one step is the loop's to mark.

        with meter.data_wait():
            batch = next(batches)
        state = step(state, batch)
        with meter.checkpoint():
            manager.save(state)
        meter.step_done()
        if due:
            record |= meter.report()

    The loop runs ahead of the device, so a single step's clock says little; the average over a
    window does, as the loop cannot run ahead by more than a step or two.
    The same marks book the process's time in `ledger`, where nothing is averaged or forgotten.
    """

    def __init__(
        self,
        *,
        tokens_per_step: int,
        clock: Callable[[], float] = time.perf_counter,
        ledger: TimeLedger | None = None,
    ) -> None:
        self._tokens_per_step = tokens_per_step
        self._clock = clock
        self._ledger = ledger or TimeLedger(clock=clock)
        self._window = _Window(clock())

    def restart(self) -> None:
        """Forget the window so far (after compilation, say): steps begin here."""
        self._ledger.turn_to(STEP)
        self._window = _Window(self._clock())

    def step_done(self) -> None:
        self._window.num_steps += 1

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time spent waiting for the next batch."""
        start = self._clock()
        with self._ledger.span(DATA_WAIT):
            yield
        self._window.data_wait += self._clock() - start

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Time that saving a checkpoint held the loop up."""
        start = self._clock()
        with self._ledger.span(CHECKPOINT):
            yield
        self._window.checkpoint += self._clock() - start

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Time that is no part of training steps, such as evaluation: it counts nowhere."""
        start = self._clock()
        with self._ledger.span(EVALUATION):
            yield
        self._window.excluded += self._clock() - start

    def report(self) -> dict[str, float]:
        """Means per step over the window, in seconds, and the rate; starts the next window.

        `step_seconds` is all wall time of a step and contains `data_wait_seconds` and
        `checkpoint_seconds`; `tokens_per_second` is over that same time. Empty without a step.
        """
        window, now = self._window, self._clock()
        self._window = _Window(now)
        if not window.num_steps:
            return {}
        seconds = now - window.started - window.excluded
        return {
            "tokens_per_second": self._tokens_per_step * window.num_steps / seconds,
            "step_seconds": seconds / window.num_steps,
            "data_wait_seconds": window.data_wait / window.num_steps,
            "checkpoint_seconds": window.checkpoint / window.num_steps,
        }
