"""Where the processes of a run meet before JAX does: process 0 listens on the coordinator's port.

Who comes says who it is. The lines stay open until the meeting is closed, while JAX's service takes over the port.
"""

import select
import socket
import time
from types import MappingProxyType
from typing import Any

from jaxscale.errors import UserError
from jaxscale.launch.line import (
    Closed,
    Late,
    Line,
    PeerLost,
    failure,
    prepared,
    raise_if_failed,
    seconds_left,
)
from jaxscale.launch.meeting import PATIENCE, Meeting
from jaxscale.launch.world import World

_GREETING = "jaxscale"
_RETRY_SECONDS = 0.2
# Where process 0 listens if the coordinator's address is of its own machine only; else everywhere.
_LOOPBACK = MappingProxyType({"127.0.0.1": "127.0.0.1", "localhost": "127.0.0.1", "::1": "::1"})


def meet(world: World, *, run: str, timeout: float) -> Meeting:
    """All processes of `world`, come together.

    run: what is run, to tell the processes of one run from those of another at the same address.
    timeout: seconds until a process that has not come is called missing.
    Raises PeerLost naming the missing, and UserError for processes that do not belong together.
    """
    deadline = time.monotonic() + timeout
    me = {
        "greeting": _GREETING,
        "run": run,
        "process": world.process_id,
        "of": world.num_processes,
        "host": socket.gethostname(),
    }
    if world.process_id == 0:
        return _Host(world, me, deadline, timeout).gather()
    return _attend(world, me, deadline, timeout)


class _Host:
    """Process 0, with its door open."""

    def __init__(self, world: World, me: dict[str, Any], deadline: float, timeout: float) -> None:
        self._world, self._me, self._deadline, self._timeout = world, me, deadline, timeout
        self._lines: dict[int, Line] = {}
        self._hosts = {0: str(me["host"])}

    def gather(self) -> Meeting:
        with _listen(self._world, self._deadline) as door:
            try:
                while len(self._hosts) < self._world.num_processes:
                    self._admit(door)
            except (UserError, PeerLost) as error:
                meeting = Meeting(self._world, self._lines, self._timeout)
                meeting.__exit__(type(error), error, None)
                raise
        meeting = Meeting(self._world, self._lines, self._timeout)
        meeting.hosts = tuple(self._hosts[i] for i in range(self._world.num_processes))
        meeting.tell_all({"hosts": meeting.hosts})
        return meeting

    def _admit(self, door: socket.socket) -> None:
        """One more process. A stranger who does not say who he is, is left standing."""
        if not select.select([door], [], [], seconds_left(self._deadline))[0]:
            raise PeerLost(self._missing())
        accepted, where = door.accept()
        line = prepared(accepted)
        try:
            hello = line.receive(min(self._deadline, time.monotonic() + PATIENCE))
        except (Late, Closed):
            accepted.close()
            return
        if not isinstance(hello, dict) or hello.get("greeting") != _GREETING:
            accepted.close()
            return
        self._seat(hello, line, str(where[0]))

    def _seat(self, hello: dict[str, Any], line: Line, where: str) -> None:
        process, host = int(hello["process"]), f"{hello['host']} ({where})"
        problem = self._problem(hello, process, host)
        if problem is not None:
            line.send(failure(UserError(problem)))
            line.socket.close()
            raise UserError(problem)
        self._lines[process], self._hosts[process] = line, str(hello["host"])

    def _problem(self, hello: dict[str, Any], process: int, host: str) -> str | None:
        count, mine = self._world.num_processes, self._me
        if hello["run"] != mine["run"]:
            return (
                f"{host} came to run {hello['run']}, but process 0 on {mine['host']} runs {mine['run']}; "
                "give each run a coordinator port of its own"
            )
        if hello["of"] != count:
            return (
                f"process {process} on {host} is one of {hello['of']} processes, "
                f"process 0 on {mine['host']} is one of {count}; start all of them with the same number"
            )
        if process in self._hosts:
            return (
                f"two processes say that they are process {process}: on {self._hosts[process]} and on {host}; "
                f"each needs a number of its own, 0 to {count - 1}"
            )
        return None

    def _missing(self) -> str:
        count = self._world.num_processes
        absent = [i for i in range(count) if i not in self._hosts]
        shown = ", ".join(self._world.name(i) for i in absent[:8])
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        here = ", ".join(sorted(set(self._hosts.values()))[:8])
        return (
            f"{len(absent)} of {count} processes did not come to {self._me['host']}:{self._world.port} within "
            f"{self._timeout:g} s: {shown}{more}; those that came are on {here}. Look at the log of the missing, and "
            "whether they reach that port; --join-timeout waits longer"
        )


def _attend(world: World, me: dict[str, Any], deadline: float, timeout: float) -> Meeting:
    """Any process but 0. It comes again where process 0 is not there yet, or closes before it has answered."""
    where = f"process 0 at {world.coordinator}:{world.port}"
    while True:
        line = _connect(world, deadline, timeout)
        try:
            line.send(me)
            message = line.receive(deadline + PATIENCE)
        except Late:
            raise PeerLost(f"{where} has not answered within {timeout:g} s") from None
        except Closed:
            line.socket.close()
            time.sleep(_RETRY_SECONDS)
            continue
        break
    raise_if_failed(message)
    meeting = Meeting(world, {0: line}, timeout)
    meeting.hosts = tuple(message["hosts"])
    return meeting


def _connect(world: World, deadline: float, timeout: float) -> Line:
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            return prepared(
                socket.create_connection((world.coordinator, world.port), timeout=min(left, 10))
            )
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(_RETRY_SECONDS)
    raise PeerLost(
        f"{world.name(world.process_id)} ({socket.gethostname()}) could not reach process 0 at {world.coordinator}:"
        f"{world.port} within {timeout:g} s: {reason}. Process 0 may not have started (its log says why), or a "
        "firewall may close the port"
    )


def _listen(world: World, deadline: float) -> socket.socket:
    """The coordinator's port; an address of this machine alone is opened to nobody else.

    It may be taken for a moment by a run that is just ending.
    """
    six = world.coordinator == "::1"
    dual = world.coordinator not in _LOOPBACK and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or six else socket.AF_INET
    patience = min(deadline, time.monotonic() + 2 * PATIENCE)
    while True:
        try:
            return socket.create_server(
                (_LOOPBACK.get(world.coordinator, ""), world.port),
                family=family,
                dualstack_ipv6=dual,
                backlog=1024,
            )
        except OSError as error:
            if time.monotonic() > patience:
                raise PeerLost(
                    f"process 0 cannot listen on port {world.port} of {socket.gethostname()}: {error.strerror}; end "
                    "what uses it, or choose another port for the coordinator"
                ) from None
        time.sleep(_RETRY_SECONDS)
