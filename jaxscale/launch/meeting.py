"""What processes that have met say to each other: a line from each to process 0.

JAX's own rendezvous names no host and, where a peer is missing, ends in an abort; its key-value store has no public
interface. So the processes meet here first (`launch.door`).
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from jaxscale.errors import UserError
from jaxscale.launch.line import Closed, Late, Line, PeerLost, failure, raise_if_failed
from jaxscale.launch.world import World

# How much longer than process 0 the others wait: it knows who is missing, and says so.
PATIENCE = 5.0


class Meeting:
    """One process's end of a meeting of all (`door.meet`). hosts: what each process's machine calls itself."""

    def __init__(self, world: World, lines: dict[int, Line], timeout: float) -> None:
        self._world, self._lines, self._timeout = world, lines, timeout
        self.hosts: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, UserError | PeerLost):
            self._tell_why(error)
        self.close()

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

    def _tell_why(self, error: UserError | PeerLost) -> None:
        """The others hear what ended this process, as far as they are still there."""
        for line in self._lines.values():
            try:
                line.send(failure(error))
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
