"""Hangs: nothing goes on for too long ends the run with the stacks of every process, for a launcher to start it again.

A lost peer, a stuck file system or a dead link leave the main thread in a call that never returns. A thread of each
process watches what comes before the first step, the steps, and what lies between them. The first that has seen nothing
go on for too long leaves a mark in the run directory; all processes that see the mark write their stacks beside it, and
end.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from jaxscale.config.run_sections import TrainingSection
from jaxscale.training.health.exits import HUNG
from jaxscale.training.health.preemption import Standing

FOLDER = "health"
_MARK = "hang.mark"
_LINGER_SECONDS = 10.0
_MUTE_SECONDS = 3 * _LINGER_SECONDS
_STANDARD_ERROR = 2  # `sys.stderr` may be no file.
# What is no step takes longer: its first time is with its compilation.
_LONGER = 4
# Of storage, in bytes a second and process: slower than this is a hang.
_SLOWEST = 20e6


@dataclass(frozen=True)
class _Doing:
    """What goes on, the seconds for which nothing of it may be seen, which setting says so, and when something was."""

    what: str
    seconds: float
    setting: str
    last: float


class Watchdog:
    """Watches from its making on; close it before the run ends. All processes of a run share `directory`.

    start: seconds without a sign before the first step, after which the run hangs; step: the same of steps. None is
    never. It needs no JAX, which may be what hangs.
    """

    def __init__(
        self,
        directory: Path,
        *,
        start: float | None,
        step: float | None,
        standing: Standing | None = None,
    ) -> None:
        self._directory, self.standing = directory / FOLDER, standing or Standing()
        self._start, self._step = start or math.inf, step or math.inf
        self._process, self._of = 0, 1
        self._doing = self._starting(0.0)  # Replaced as a whole, as a thread reads it.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if min(self._start, self._step) < math.inf:
            self._thread.start()

    def among(self, process: int, of: int) -> None:
        """Which of how many processes this one is."""
        self._process, self._of = process, of

    def starting(self, *, waiting: float = 0.0, stored_bytes: float = 0) -> None:
        """A part of what comes before the first step begins.

        waiting: seconds that it may take by other settings. stored_bytes: that are read, for which it has longer.
        """
        self._doing = self._starting(waiting + stored_bytes / _SLOWEST)

    def beat(self, done: int) -> None:
        """A step has been made: `done` in all."""
        self.standing.done = done
        self._doing = self._stepping()

    def alive(self) -> None:
        """What is no step has come a part of its way."""
        self._doing = replace(self._doing, last=time.monotonic())

    @contextmanager
    def during(self, what: str, stored_bytes: float = 0) -> Iterator[None]:
        """Inside, no step is expected but that `what` ends, or is `alive`, in four times the seconds of a step.

        stored_bytes: that this process may have to write or read meanwhile, for which it has longer.
        """
        self.turn_to(what, stored_bytes)
        try:
            yield
        finally:
            self._doing = self._stepping()

    def turn_to(self, what: str, stored_bytes: float = 0) -> None:
        """As `during`, for good: nothing else follows in this run."""
        longer = _LONGER * self._step + stored_bytes / _SLOWEST
        setting = f"training.hang_seconds={self._step:g}; {longer:.0f} s for this"
        self._doing = _Doing(what, longer, setting, time.monotonic())

    def _stepping(self) -> _Doing:
        return _Doing("step", self._step, f"training.hang_seconds={self._step:g}", time.monotonic())

    def _starting(self, more: float) -> _Doing:
        setting = f"training.start_seconds={self._start:g}"
        if more:
            setting += f"; {self._start + more:.0f} s for this"
        sign = "sign of the first step"
        return _Doing(sign, self._start + more, setting, time.monotonic())

    def close(self) -> None:
        """The run has made its last step."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        self._unless_mute()
        old_mark = self._mark()
        while not self._ended.wait(min(2.0, self._start / 4, self._step / 4)):
            self._unless_mute()
            doing = self._doing
            idle = time.monotonic() - doing.last
            if idle > doing.seconds:
                self._end(f"no {doing.what} for {idle:.0f} s ({doing.setting})", first=True)
            elif self._mark() != old_mark:
                self._end("another process found the run hanging", first=False)
        faulthandler.cancel_dump_traceback_later()

    def _unless_mute(self) -> None:
        """The run's directory may be what hangs, and this thread with it: then stacks go to standard error, and the
        process with them, with status 1."""
        seconds = self._doing.seconds + _MUTE_SECONDS
        if seconds < math.inf:
            faulthandler.dump_traceback_later(seconds, exit=True, file=_STANDARD_ERROR)
        else:
            faulthandler.cancel_dump_traceback_later()

    def _mark(self) -> int | None:
        """When a process last found a hang; None for never."""
        with contextlib.suppress(OSError):
            return (self._directory / _MARK).stat().st_mtime_ns
        return None

    def _end(self, why: str, *, first: bool) -> NoReturn:
        """Leaves stacks and goes. A process that goes takes others with it, so those that know first wait for them."""
        faulthandler.dump_traceback_later(_MUTE_SECONDS, exit=True, file=_STANDARD_ERROR)
        try:
            path = self._dump(why)
            if first:
                (self._directory / _MARK).touch()
            where = f"stacks: {path}"
        except OSError as error:
            where = f"the stacks could not be written ({error})"
        sys.stderr.write(f"process {self._process} hangs: {why}; {where}; {self._lost()}\n")
        sys.stderr.flush()
        if first and self._of > 1:
            time.sleep(min(_LINGER_SECONDS, self._doing.seconds))
        os._exit(HUNG)

    def _lost(self) -> str:
        """What this end costs, unless the checkpoints are what hangs."""
        words = ["what is lost is not known: the checkpoints do not answer"]
        asking = threading.Thread(target=lambda: words.append(self.standing.lost()), daemon=True)
        asking.start()
        asking.join(_LINGER_SECONDS)
        return words[-1]

    def _dump(self, why: str) -> Path:
        """The stack of every thread of this process."""
        self._directory.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        path = self._directory / f"hang-{now:%Y%m%dT%H%M%S}-process-{self._process}.txt"
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{now.isoformat()}: {why}, behind step {self.standing.done}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        return path


def watch(section: TrainingSection, directory: Path) -> Watchdog:
    """A watchdog for a run that begins."""
    return Watchdog(directory, start=section.start_seconds, step=section.hang_seconds)
