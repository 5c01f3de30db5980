"""A line between two processes: JSON values over a socket, with deadlines, and errors that travel."""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from jaxscale.errors import UserError

_LONGEST = 16 << 20
_KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class PeerLost(Exception):
    """A process that did not come, or that is gone. Starting all of them again may help."""


class Closed(Exception):
    """The other end of a line has gone."""


class Late(Exception):
    """Nothing was said in time."""


@dataclass
class Line:
    """A socket that carries a JSON value a line."""

    socket: socket.socket
    unread: bytes = b""

    def send(self, value: object) -> None:
        try:
            self.socket.settimeout(None)
            self.socket.sendall(json.dumps(value).encode() + b"\n")
        except OSError as error:
            raise Closed from error

    def receive(self, deadline: float | None) -> Any:
        """The next value. Raises Late behind the deadline, Closed where no value can come any more."""
        while b"\n" not in self.unread:
            self._read_more(deadline)
        line, _, self.unread = self.unread.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError as error:
            raise Closed from error

    def _read_more(self, deadline: float | None) -> None:
        try:
            self.socket.settimeout(seconds_left(deadline))
            more = self.socket.recv(1 << 16)
        except TimeoutError as error:
            raise Late from error
        except OSError as error:
            raise Closed from error
        self.unread += more
        if not more or len(self.unread) > _LONGEST:
            raise Closed


def prepared(connection: socket.socket) -> Line:
    """Keep-alive finds a machine that is gone without a word: after a minute and three unanswered probes."""
    for option, value in _KEEP_ALIVE:
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return Line(connection)


def failure(error: UserError | PeerLost) -> dict[str, str]:
    return {"user" if isinstance(error, UserError) else "lost": str(error)}


def raise_if_failed(message: Any) -> None:
    if "user" in message:
        raise UserError(message["user"])
    if "lost" in message:
        raise PeerLost(message["lost"])


def seconds_left(deadline: float | None) -> float | None:
    """Seconds; never quite zero, which would mean not to wait at all."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.001)
