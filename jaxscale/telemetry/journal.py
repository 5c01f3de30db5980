"""A run's diary, `events.jsonl`: what each of its processes did with its time, by the clock on the wall.

Metrics are cut back when a run resumes; the diary only grows, so that steps made twice and the time between
processes stay known. Each line repeats all seconds of its process so far: a lost line loses detail and no time.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from jaxscale.telemetry.ledger import TimeLedger
from jaxscale.telemetry.process import Identity, identity, seconds_since_process_start

EVENTS_FILE = "events.jsonl"
Kind = Literal["start", "resume", "progress", "end"]
Status = Literal["finished", "preempted", "failed"]

# A process that is killed leaves at most this share of its life, and this many seconds, untold.
_UNTOLD_SHARE, _UNTOLD_SECONDS, _LEAST_SECONDS = 1e-3, 60.0, 1.0


@dataclass(frozen=True)
class Event:
    """One line. time: Unix seconds. step: steps made so far. seconds: of this process, by kind of `ledger`.

    resume: the process goes on behind `step`, from a checkpoint or from nothing; what it made beyond is lost.
    doing: the kind that it is busy with. facts: what only some lines have (`born`, `planned_steps`, `status`, ...).
    """

    time: float
    kind: Kind
    step: int
    seconds: dict[str, float]
    doing: str
    facts: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Writes the diary of one process. Without a directory (all processes but one) it only books time.

    A run directory that is not there yet is made at `resume`, when the run is known to work: a start that failed leaves
    nothing. `preemption` is what a process raises that was asked to go before its first step. That the diary cannot be
    written ends the diary and not the run.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        planned_steps: int,
        clock: Callable[[], float] = time.time,
        ledger: TimeLedger | None = None,
        preemption: type[BaseException] | tuple[()] = (),
    ) -> None:
        self.ledger = ledger or TimeLedger(age=seconds_since_process_start() or 0.0)
        self._path = None if directory is None else directory / EVENTS_FILE
        self._untold: list[str] = []
        self._clock, self._told = clock, clock()
        self._preemption = preemption
        self._step, self._is_first = 0, True
        self._status: Status | None = None
        born = round(self._told - self._age(), 3)
        self._tell("start", born=born, planned_steps=planned_steps, **vars(identity()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The last line: how it ended. A process that is killed leaves none."""
        if error is not None and isinstance(error, self._preemption):
            self._tell("end", status="preempted")
        elif error is not None:
            self._tell("end", status="failed", reason=f"{type(error).__name__}: {error}"[:500])
        elif self._status is not None:
            self._tell("end", status=self._status)

    def resume(self, step: int) -> None:
        """Steps are made behind `step` from here on; what was made beyond it, here or by a process before, is lost."""
        self._step, self._is_first = step, True
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
        self._tell("resume")

    def step(self, done: int) -> None:
        """`done` steps have been made. Call it for each: it writes when enough time has gone by."""
        self._step = done
        silent = self._clock() - self._told
        if self._is_first or silent >= max(
            _LEAST_SECONDS, min(_UNTOLD_SECONDS, _UNTOLD_SHARE * self._age())
        ):
            self._tell("progress")
        self._is_first = False

    def note(self, **facts: Any) -> None:
        """A line now, with these facts: before what takes long, or behind what is worth knowing at once."""
        self._tell("progress", **facts)

    def ended(self, status: Status) -> None:
        """What the last line is to say."""
        self._status = status

    def _age(self) -> float:
        return sum(self.ledger.seconds().values())

    def _tell(self, kind: Kind, **facts: Any) -> None:
        if self._path is None:
            return
        self._told = self._clock()
        seconds = {name: round(value, 3) for name, value in self.ledger.seconds().items()}
        line: dict[str, Any] = {"time": round(self._told, 3), "kind": kind, "step": self._step}
        line |= {"seconds": seconds, "doing": self.ledger.kind, **facts}
        self._untold.append(json.dumps(line) + "\n")
        if self._path.parent.is_dir():
            self._write(self._path)

    def _write(self, path: Path) -> None:
        try:
            _end_torn_line(path)
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(self._untold))
            self._untold = []
        except OSError:
            self._path = None


def read_events(path: Path) -> list[Event]:
    """The diary in order; an absent one is empty, a line that a crash left half written or mixed up is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [event for line in lines if (event := parse_event(line)) is not None]


def parse_event(line: str) -> Event | None:
    """The event of one line; None where it is not a whole one."""
    try:
        facts = json.loads(line)
        seconds = {str(name): float(value) for name, value in facts.pop("seconds").items()}
        time_, kind, step = facts.pop("time"), facts.pop("kind"), facts.pop("step")
        return Event(float(time_), kind, int(step), seconds, str(facts.pop("doing")), facts)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def written_by(event: Event) -> Identity | None:
    """Which process wrote a `start`; None where the line does not say."""
    facts = event.facts
    if not {"pid", "machine", "started"} <= facts.keys():
        return None
    return Identity(facts["pid"], facts["machine"], facts["started"])


def _end_torn_line(path: Path) -> None:
    """A line that a crash left half written is ended, so that the next one stands alone."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
