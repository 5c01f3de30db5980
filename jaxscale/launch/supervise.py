"""Starts the processes of one attempt and ends them together: none outlives another for longer than was said."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from jaxscale.launch.members import Ended, Member
from jaxscale.launch.orphans import LAUNCHER
from jaxscale.launch.screen import Screen, Transcript
from jaxscale.training.health.exits import PREEMPTED

_POLL_SECONDS = 0.05
_DRAIN_SECONDS = 5.0
# Within which a process elsewhere is killed, and its connection ends.
_ORDER_SECONDS = 5.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Statuses with which a process ends as it should: the others end the same way by themselves.
_ORDERLY = (0, PREEMPTED)


@dataclass(frozen=True)
class Limits:
    """grace: seconds that processes have to end after a signal to the launcher, or once one of them has ended orderly.

    peer_grace: seconds that the others have once one has failed; then they are killed.
    """

    grace: float = 120.0
    peer_grace: float = 10.0


@dataclass
class Notices:
    """Signals that have reached the launcher, oldest first."""

    received: list[signal.Signals] = field(default_factory=list)


@contextmanager
def notices() -> Iterator[Notices]:
    """Collects SIGTERM, SIGINT (Ctrl-C) and SIGHUP instead of being ended by them."""
    found = Notices()

    def take(number: int, _frame: FrameType | None) -> None:
        found.received.append(signal.Signals(number))

    before = {one: signal.signal(one, take) for one in _PASSED_ON}
    try:
        yield found
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class _Child:
    """A started process, in a session of its own: Ctrl-C in a terminal reaches it through the launcher only."""

    def __init__(self, member: Member, screen: Screen, attempt: int) -> None:
        self.member, self.stopped, self.killed = member, False, False
        self._transcript = Transcript(member.label, member.log, screen, attempt)
        self._process = subprocess.Popen(
            member.argv,
            env={**os.environ, **member.environment, **_known_launcher(member)},
            stdin=subprocess.PIPE if member.remote else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        readers = (
            (self._transcript.output, self._process.stdout),
            (self._transcript.errors, self._process.stderr),
        )
        self._threads = [
            threading.Thread(target=read, args=(stream,), daemon=True) for read, stream in readers
        ]
        for thread in self._threads:
            thread.start()

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def ask(self, number: signal.Signals) -> None:
        """Passes a signal on."""
        self.stopped = True
        if self.member.remote:
            self._order(number)
        else:
            self._process.send_signal(number)

    def _order(self, number: signal.Signals) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(number.name.removeprefix("SIG").encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # It is just ending.

    def kill(self) -> None:
        """Ends it, and whatever it has started, without asking."""
        self.stopped = self.killed = True
        if not self.member.remote:
            self._kill_group()
            return
        # What is here is the connection only. Cut first, it would leave the process there its whole grace.
        self._order(signal.SIGKILL)
        timer = threading.Timer(_ORDER_SECONDS, self._kill_group)
        timer.daemon = True
        timer.start()

    def end(self) -> Ended:
        """What there is to say of it, once it has ended. What it has started and left behind is ended too."""
        status = self._process.wait()
        self._kill_group()
        if self._process.stdin is not None:
            self._process.stdin.close()
        for thread in self._threads:
            thread.join(_DRAIN_SECONDS)
        self._transcript.close()
        return Ended(self.member.label, status, self.stopped, self._transcript.message)

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _known_launcher(member: Member) -> dict[str, str]:
    """By which a process of this machine ends with its launcher; elsewhere the connection's end says it."""
    return {} if member.remote else {LAUNCHER: str(os.getpid())}


def run_attempt(
    members: Sequence[Member], *, attempt: int, screen: Screen, limits: Limits, notice: Notices
) -> list[Ended]:
    """Runs all members until all have ended, and returns how; in order.

    A signal in `notice` is passed on, as SIGTERM; a second one kills. A member that fails ends the others.
    """
    group = _Group([], limits, screen)
    try:
        for member in members:
            group.children.append(_Child(member, screen, attempt))
        while any(child.status is None for child in group.children):
            group.look(notice)
            time.sleep(_POLL_SECONDS)
    finally:
        for child in group.children:
            if child.status is None:
                child.kill()
        ended = [child.end() for child in group.children]
    return ended


@dataclass
class _Group:
    """deadline: when what is still running is killed (time.monotonic); None while all go on."""

    children: list[_Child]
    limits: Limits
    screen: Screen
    deadline: float | None = None
    seen: int = 0
    failed: bool = False

    def look(self, notice: Notices) -> None:
        """What has happened since the last look, and what follows."""
        for number in notice.received[self.seen :]:
            self._pass_on(number)
        statuses = [child.status for child in self.children]
        if not self.failed and any(one is not None and one not in _ORDERLY for one in statuses):
            self._end_others()
        elif self.deadline is None and any(one in _ORDERLY for one in statuses):
            self._within(self.limits.grace)
        if self.deadline is not None and time.monotonic() > self.deadline:
            self._kill("did not end in time: killed")

    def _pass_on(self, number: signal.Signals) -> None:
        self.seen += 1
        if self.seen > 1:
            self._kill("killed at the second signal")
            return
        grace = self.limits.grace
        self.screen.say(f"{number.name}: all save and end, or are killed in {grace:g} s")
        self._within(self.limits.grace)
        for child in self._running():
            child.ask(signal.SIGTERM)  # By which training saves; Ctrl-C would just end it.

    def _end_others(self) -> None:
        self.failed = True
        first = next(
            child
            for child in self.children
            if child.status is not None and child.status not in _ORDERLY
        )
        running = self._running()
        if not running:
            return
        how = Ended(first.member.label, first.status or 0).words()
        self.screen.say(
            f"{how}; ending the other {len(running)} within {self.limits.peer_grace:g} s"
        )
        self._within(self.limits.peer_grace)
        for child in running:
            child.ask(signal.SIGTERM)

    def _kill(self, why: str) -> None:
        running = [child for child in self._running() if not child.killed]
        if running:
            self.screen.say(f"{', '.join(child.member.label for child in running)}: {why}")
        for child in running:
            child.kill()

    def _within(self, seconds: float) -> None:
        """Never later than was said before."""
        new = time.monotonic() + seconds
        self.deadline = new if self.deadline is None else min(new, self.deadline)

    def _running(self) -> list[_Child]:
        return [child for child in self.children if child.status is None]
