"""What processes that have met say to each other: a line from each to process 0.

JAX's own rendezvous names no host and, where a peer is missing, ends in an abort; its key-value store has no public
interface. So the processes meet here first (`launch.door`).
"""

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from jaxscale.errors import UserError
from jaxscale.launch.line import Closed, Late, Line, PeerLost, failure, raise_if_failed
from jaxscale.launch.peers import LOST_SECONDS, SIGN, PeerWatch, goodbye, leave_soon
from jaxscale.launch.world import World

# How much longer than process 0 the others wait: it knows who is missing, and says so.
PATIENCE = 5.0


class Meeting:
    """One process's end of a meeting of all (`door.meet`). hosts: what each process's machine calls itself."""

    def __init__(self, world: World, lines: dict[int, Line], timeout: float) -> None:
        self._world, self._lines, self._timeout = world, lines, timeout
        self.hosts: tuple[str, ...] = ()
        # Called when a process that is waited for says that it goes on.
        self.alive: Callable[[], None] = lambda: None
        self._signed = 0.0
        self._watch: PeerWatch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._end_watch(self._watch, error)
        elif error is not None:
            self._tell_present(failure(self._reason(error)))
        self.close()

    def keep_watch(self, lost_seconds: float = LOST_SECONDS) -> None:
        """Nothing is exchanged any more: the lines tell from here on who is still there (`launch.peers`)."""
        self._watch = PeerWatch(self._lines, self.name, lost_seconds)

    def _end_watch(self, watch: PeerWatch, error: BaseException | None) -> None:
        """The last word, which says why where there is an error."""
        if error is None:
            if watch.stop():
                self._tell_present(goodbye())
            return
        if not isinstance(error, PeerLost):
            watch.explain()
        if watch.stop():
            self._tell_present(failure(self._reason(error)))
            self._see_off()
        elif isinstance(error, UserError):
            # Without its peer a save fails as on a full disk: no mistake of the user, or nobody starts the run again.
            watch.wait()
        if not isinstance(error, UserError | PeerLost):
            leave_soon()

    def _reason(self, error: BaseException) -> UserError | PeerLost:
        if isinstance(error, UserError | PeerLost):
            return error
        words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return PeerLost(f"{self.name(self.process_id)} failed: {words}")

    def _see_off(self) -> None:
        """JAX's service is in process 0, whose end aborts the others: so it waits until they have gone."""
        until = time.monotonic() + 2 * PATIENCE
        for line in self._lines.values() if self.process_id == 0 else ():
            with suppress(Late, Closed):
                while True:
                    line.receive(until)

    @property
    def process_id(self) -> int:
        return self._world.process_id

    def name(self, process: int) -> str:
        """`process 3 on node7`."""
        return f"process {process} on {self.hosts[process]}"

    def exchange(self, what: str, value: object, *, patient: bool = False) -> list[Any]:
        """What every process says of `what`, by process; all call it in the same order.

        patient: waits as long as it takes, but not for a process that is gone; otherwise for the meeting's timeout.
        Raises PeerLost naming the host, and UserError where another process has met one.
        """
        deadline = None if patient else time.monotonic() + self._timeout
        if self.process_id == 0:
            return self._collect(what, value, deadline)
        return self._report(what, value, deadline and deadline + PATIENCE)

    def sign(self, period: float = 0.0) -> None:
        """Tells who waits for this process that it goes on; at most once in `period` seconds."""
        now = time.monotonic()
        if now - self._signed >= period:
            self._signed = now
            self._tell_present({SIGN: True})

    def close(self) -> None:
        for line in self._lines.values():
            line.socket.close()

    def _collect(self, what: str, value: object, deadline: float | None) -> list[Any]:
        said = {0: value}
        for process, line in self._lines.items():
            message = self._heard(process, what, line, deadline)
            said[process] = message["value"]
        everything = [said[process] for process in range(self._world.num_processes)]
        self.tell_all({"values": everything})
        return everything

    def _report(self, what: str, value: object, deadline: float | None) -> list[Any]:
        try:
            self._lines[0].send({"value": value})
        except Closed:
            raise self._gone(0, what) from None
        message = self._heard(0, what, self._lines[0], deadline)
        return list(message["values"])

    def _heard(self, process: int, what: str, line: Line, deadline: float | None) -> Any:
        while SIGN in (message := self._received(process, what, line, deadline)):
            self.alive()
            if self.process_id == 0:
                self.sign()
        return message

    def _received(self, process: int, what: str, line: Line, deadline: float | None) -> Any:
        try:
            message = line.receive(deadline)
        except Late:
            raise PeerLost(
                f"{self.name(process)} has not answered for {self._timeout:g} s (waiting for its {what})"
            ) from None
        except Closed:
            raise self._gone(process, what) from None
        raise_if_failed(message)
        return message

    def _gone(self, process: int, what: str) -> PeerLost:
        return PeerLost(
            f"{self.name(process)} ended while the processes compared their {what}; its own log says why"
        )

    def tell_all(self, message: object) -> None:
        """Process 0 to the others."""
        for process, line in self._lines.items():
            try:
                line.send(message)
            except Closed:
                raise self._gone(process, "answers") from None

    def _tell_present(self, message: object) -> None:
        """To the others, as far as they are still there."""
        for line in self._lines.values():
            try:
                line.send(message)
            except Closed:
                continue


Action = Callable[[], None]


def in_turns(meeting: Meeting, what: str, action: Action) -> None:
    """`action` by process 0, then by one process of every other machine, then by the rest.

    For what the first one makes and the others find: on a shared disk once, on local disks once a machine.
    """
    first = {host: meeting.hosts.index(host) for host in meeting.hosts}
    mine = meeting.process_id
    turn = 0 if mine == 0 else 1 if mine in first.values() else 2
    for number in range(3):
        if number == turn:
            action()
        meeting.exchange(what, None, patient=True)
