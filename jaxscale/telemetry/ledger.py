"""A process's wall time, every second of it under one name."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# What a process can be busy with. `step`: making steps, or waiting for the device to make them.
STARTUP, COMPILE, STEP, DATA_WAIT, CHECKPOINT, EVALUATION, CLOSING = KINDS = (
    *("startup", "compile", "step", "data_wait"),
    *("checkpoint", "evaluation", "closing"),
)


class TimeLedger:
    """Books time by the main thread's own clock; a span inside another takes its time out of that one's.

    It begins `age` seconds ago, in `startup`: the operating system knows when a process was made, Python only when it
    was loaded.
    """

    def __init__(self, *, age: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock() - age
        self._booked = dict.fromkeys(KINDS, 0.0)
        self.kind = STARTUP

    def turn_to(self, kind: str) -> None:
        """From now on the time is `kind`'s."""
        now = self._clock()
        self._booked[self.kind] += now - self._since
        self._since, self.kind = now, kind

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """The time inside is `kind`'s, whatever comes of it; then that of what was interrupted."""
        interrupted = self.kind
        self.turn_to(kind)
        try:
            yield
        finally:
            self.turn_to(interrupted)

    def first_call(self, kind: str, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, whose first call is `kind`'s: a jitted one compiles in it, and only starts to compute."""
        calls = 0

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            nonlocal calls
            calls += 1
            if calls > 1:
                return function(*args, **kwargs)
            with self.span(kind):
                return function(*args, **kwargs)

        return run

    def seconds(self) -> dict[str, float]:
        """Seconds of each kind so far; together the age of the process."""
        self.turn_to(self.kind)
        return {name: value for name, value in self._booked.items() if value}
