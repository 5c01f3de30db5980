"""SIGTERM, by which schedulers announce that a process has to go: the first asks for a checkpoint, a second is obeyed.

The handler of a signal runs when the interpreter gets round to it, which is never while the main thread waits for a
device whose peer is gone. So a thread reads the signals' numbers from the wake-up descriptor, where the system's own
handler puts them at once.
"""

import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from jaxscale.errors import UserError
from jaxscale.training.health.exits import PREEMPTED

GRACE_VARIABLE = "JAXSCALE_GRACE_SECONDS"
# Of Kubernetes, of Slurm (KillWait), and of a Spot VM.
_USUAL_GRACE_SECONDS = 30.0

# A launcher and a process group may each pass on the same notice.
_SAME_NOTICE_SECONDS = 2.0
_NEARLY_OVER = 0.8
_CLOSE = b"\0"


def grace_seconds() -> float:
    """Seconds between SIGTERM and the end that the scheduler forces: only what starts a process knows them.

    Raises UserError for what is no number of seconds.
    """
    text = os.environ.get(GRACE_VARIABLE, str(_USUAL_GRACE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{GRACE_VARIABLE}={text!r}: write seconds, more than 0")
    return seconds


def short_grace(seconds: float) -> str | None:
    """What to say where a checkpoint took `seconds` and what started this process leaves it hardly as long to save in;
    None where it does, or where nothing says how long that is."""
    if GRACE_VARIABLE not in os.environ or seconds <= _NEARLY_OVER * grace_seconds():
        return None
    return (
        f"a checkpoint took {seconds:.3g} s, and a preemption leaves {grace_seconds():g} s to save in "
        f"({GRACE_VARIABLE}, by --grace of the launchers): it may lose the steps since the checkpoint before. Give "
        f"--grace {math.ceil(2 * seconds)}, or lower checkpoint.every"
    )


class Preempted(Exception):
    """A stop was asked for before there was anything to save."""


@dataclass
class Standing:
    """How far a run has come. done: steps made; saved: steps of complete checkpoints, asked when it matters."""

    done: int = 0
    saved: Callable[[], Sequence[int]] = field(default=list)

    def lost(self) -> str:
        """What an end at this moment costs."""
        newest = max((step for step in self.saved() if step <= self.done), default=0)
        where = (
            f"the checkpoint of step {newest}" if newest else "the start: there is no checkpoint"
        )
        if newest == self.done:
            return f"nothing is lost: the run goes on from {where}"
        return f"steps {newest + 1} to {self.done} are lost: the run goes on from {where}"


@dataclass
class StopRequest:
    """Whether this process was asked to end after the step that is running."""

    standing: Standing
    asked: bool = False

    def check(self) -> None:
        """Raises Preempted where a stop was asked for: between pieces of work that need no saving."""
        if self.asked:
            raise Preempted


@contextmanager
def stop_on_signal(grace: float, standing: Standing) -> Iterator[StopRequest]:
    """SIGTERM asks for a stop instead of ending the process; call it in the main thread.

    grace: seconds between SIGTERM and the end that the scheduler forces. When most of them are over, and at a second
    SIGTERM, standard error hears what is lost, by `standing`.
    """
    request = StopRequest(standing)

    def ask(_number: int, _frame: FrameType | None) -> None:
        request.asked = True

    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    guard = threading.Thread(
        target=_guard, args=(inbox, request, grace), name="stop-guard", daemon=True
    )
    guard.start()
    previous = signal.signal(signal.SIGTERM, ask)
    descriptor = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    try:
        yield request
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, previous)
        outbox.send(_CLOSE)
        guard.join()
        inbox.close()
        outbox.close()


def _guard(inbox: socket.socket, request: StopRequest, grace: float) -> None:
    """Runs beside the main thread: marks the first SIGTERM, warns before the grace ends, obeys the next."""
    first, warn_at = None, float("inf")
    while True:
        numbers = _numbers(inbox, warn_at)
        if _CLOSE[0] in numbers:
            return
        now = time.monotonic()
        if now >= warn_at:
            warn_at = float("inf")
            _tell(
                f"most of the {grace:g} s of grace is over; if this process is ended now, ",
                request,
            )
        if signal.SIGTERM not in numbers:
            continue
        request.asked = True
        if first is None:
            first, warn_at = now, now + _NEARLY_OVER * grace
        elif now - first > _SAME_NOTICE_SECONDS:
            _end_now(request)


def _numbers(inbox: socket.socket, until: float) -> bytes:
    """Signals that came; none where `until` (monotonic seconds) came first."""
    timeout = None if until == float("inf") else max(0.0, until - time.monotonic())
    ready, _, _ = select.select([inbox], [], [], timeout)
    return inbox.recv(256) if ready else b""


def _end_now(request: StopRequest) -> NoReturn:
    _tell("second SIGTERM: ending at once; ", request)
    os._exit(PREEMPTED)


def _tell(what: str, request: StopRequest) -> None:
    sys.stderr.write(f"{what}{request.standing.lost()}\n")
    sys.stderr.flush()
