"""Hangs: no step for too long ends the run with the stacks of every process, so that a launcher can start it again.

A lost peer, a stuck file system or a dead link leave the main thread in a call that never returns. A thread of each
process watches the steps. The first that has seen none for too long leaves a mark in the run directory; all processes
that see the mark write their stacks beside it, and end.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import jax

from jaxscale.training.health.exits import HUNG
from jaxscale.training.health.preemption import Standing

FOLDER = "health"
_MARK = "hang.mark"
_LINGER_SECONDS = 10.0


class Watchdog:
    """Watches from the first `beat` on, but not inside `paused`; close it before the run ends.

    seconds: without a step, after which the run hangs; None watches nothing. All processes of a run share `directory`.
    """

    def __init__(
        self,
        seconds: float | None,
        directory: Path,
        standing: Standing,
    ) -> None:
        self._seconds, self._directory, self._standing = seconds, directory / FOLDER, standing
        self._last: float | None = None
        self._pauses = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if seconds is not None:
            self._old_mark = self._mark()
            self._thread.start()

    def beat(self, done: int) -> None:
        """A step has been made: `done` in all."""
        self._standing.done = done
        self._last = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is no step, and takes the time that it takes: evaluation, checkpoints, samples."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if self._last is not None:
                self._last = time.monotonic()

    def close(self) -> None:
        """The run has made its last step."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._ended.wait(min(2.0, self._seconds / 4)):
            idle = 0.0 if self._last is None or self._pauses else time.monotonic() - self._last
            if idle > self._seconds:
                self._end(
                    f"no step for {idle:.0f} s (training.hang_seconds={self._seconds:g})",
                    first=True,
                )
            elif self._mark() != self._old_mark:
                self._end("another process found the run hanging", first=False)

    def _mark(self) -> int | None:
        """When a process last found a hang; None for never."""
        with contextlib.suppress(OSError):
            return (self._directory / _MARK).stat().st_mtime_ns
        return None

    def _end(self, why: str, *, first: bool) -> NoReturn:
        """Leaves stacks and goes. A process that goes takes others with it, so those that know first wait for them."""
        # The disk may be what hangs: then stacks go to standard error and the process with them, with status 1.
        faulthandler.dump_traceback_later(3 * _LINGER_SECONDS, exit=True)
        try:
            path = self._dump(why)
            if first:
                (self._directory / _MARK).touch()
            where = f"stacks: {path}"
        except OSError as error:
            where = f"the stacks could not be written ({error})"
        process = jax.process_index()
        sys.stderr.write(f"process {process} hangs: {why}; {where}; {self._standing.lost()}\n")
        sys.stderr.flush()
        if first and jax.process_count() > 1:
            time.sleep(min(_LINGER_SECONDS, self._seconds or 0))
        os._exit(HUNG)

    def _dump(self, why: str) -> Path:
        """The stack of every thread of this process."""
        self._directory.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        path = self._directory / f"hang-{now:%Y%m%dT%H%M%S}-process-{jax.process_index()}.txt"
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{now.isoformat()}: {why}, behind step {self._standing.done}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        return path
