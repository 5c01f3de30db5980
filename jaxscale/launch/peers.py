"""Whether the other processes are still there while all of them train.

A peer that is gone leaves the others in a collective that never returns, or that ends in words which name no host. So
the lines on which the processes have met go on: a sign of life every few seconds, and a last word. Who is silent for
too long, or gone without a last word, is named by every process, and all of them end.
"""

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jaxscale.launch.line import Closed, Late, Line

# A cut is named this many seconds behind it: before JAX's own service gives up (60 s), and about when Gloo does (30 s).
LOST_SECONDS = 30.0
_SIGN_SECONDS = 5.0
_LOOK_SECONDS = 0.25
# For this process to end by itself once a peer is lost: to write its stacks, or to leave a collective that failed.
_PARTING_SECONDS = 12.0
# The same once a peer has failed; and for what Python does at the end, where JAX would wait for the others.
_FOLLOWING_SECONDS, _LEAVING_SECONDS = 5.0, 3.0
# JAX's service is in process 0, and its end aborts the others: so it is the last.
_LAST_SECONDS = 1.0
_FAILURE, _USER_ERROR = 1, 2
SIGN, _GOODBYE = "alive", "goodbye"


@dataclass
class _Peer:
    line: Line
    heard: float = field(default_factory=time.monotonic)


class PeerWatch:
    """Watches `lines` from its making on; nobody else uses them before `stop`. name: of a process, for messages.

    lost_seconds: of silence, behind which a peer is lost. Then standard error hears who it is, so do the other peers,
    and the process ends with status 1; with 2, where the peer's last word was a mistake of the user.
    """

    def __init__(
        self,
        lines: Mapping[int, Line],
        name: Callable[[int], str],
        lost_seconds: float,
    ) -> None:
        self._peers = {process: _Peer(line) for process, line in lines.items()}
        self._name, self._lost_seconds = name, lost_seconds
        self._period = min(_SIGN_SECONDS, lost_seconds / 6)
        self._last_seconds = 0.0 if 0 in lines else _LAST_SECONDS
        self._looked = self._said = time.monotonic()
        self._ended, self._found = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peer-watch", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Ends the watch, unless a peer is lost: then it goes on to end the process. Whether it has stopped."""
        self._ended.set()
        while self._thread.is_alive() and not self._found.is_set():
            self._thread.join(_LOOK_SECONDS)
        return not self._found.is_set()

    def wait(self) -> None:
        """Returns when the watch has stopped: where a peer is lost it ends the process, and with it this call."""
        self._thread.join()

    def explain(self) -> None:
        """For a process that fails, maybe because of a peer: returns when none is silent, or the lost one is named."""
        time.sleep(4 * _LOOK_SECONDS)  # Who has just gone is heard of a moment later.
        while not self._found.is_set() and self._anybody_silent():
            time.sleep(_LOOK_SECONDS)

    def _anybody_silent(self) -> bool:
        patience = time.monotonic() - 2 * self._period
        return any(peer.heard < patience for peer in list(self._peers.values()))

    def _watch(self) -> None:
        while not self._ended.is_set():
            sockets = [one.line.socket for one in self._peers.values()]
            ready = select.select(sockets, [], [], _LOOK_SECONDS)[0]
            self._forgive_own_sleep()
            for process, peer in list(self._peers.items()):
                if peer.line.socket in ready:
                    self._listen(process, peer)
                elif time.monotonic() - peer.heard > self._lost_seconds:
                    self._lose(
                        process,
                        f"{self._name(process)} has not been heard for {self._lost_seconds:g} s: the machine, or "
                        "the network to it, is gone; its own log may say more",
                    )
            self._say()

    def _forgive_own_sleep(self) -> None:
        """A process that was stopped has heard nobody, which is nobody else's fault."""
        now = time.monotonic()
        slept = now - self._looked
        self._looked = now
        if slept > self._period:
            for peer in self._peers.values():
                peer.heard += slept

    def _listen(self, process: int, peer: _Peer) -> None:
        """All that has come."""
        while process in self._peers:
            try:
                message = peer.line.receive(time.monotonic())
            except Late:
                return
            except Closed:
                self._lose(
                    process,
                    f"{self._name(process)} is gone without a last word: killed, or its machine is; its own log may "
                    "say more",
                )
            peer.heard = time.monotonic()
            self._take(process, message)

    def _take(self, process: int, message: Any) -> None:
        if _GOODBYE in message:
            del self._peers[process]
        elif "user" in message:
            self._follow(process, message["user"], _USER_ERROR)
        elif "lost" in message:
            self._follow(process, message["lost"], _FAILURE)

    def _say(self) -> None:
        if time.monotonic() - self._said < self._period:
            return
        self._said = time.monotonic()
        self._tell_all({SIGN: True})

    def _tell_all(self, message: object) -> None:
        for peer in self._peers.values():
            try:
                peer.line.send(message)
            except Closed:
                continue  # What it has left on the line says why.

    def _lose(self, process: int, why: str) -> NoReturn:
        self._end(process, why, _FAILURE, min(_PARTING_SECONDS, self._lost_seconds))

    def _follow(self, process: int, why: str, status: int) -> NoReturn:
        """What a peer has failed of, this process may be just about to fail of itself."""
        self._end(process, why, status, _FOLLOWING_SECONDS)

    def _end(self, process: int, why: str, status: int, seconds: float) -> NoReturn:
        sys.stderr.write(f"error: {why}\n")
        sys.stderr.flush()
        self._peers.pop(process)
        self._tell_all({"user" if status == _USER_ERROR else "lost": why})
        self._found.set()
        time.sleep(seconds + self._last_seconds)
        sys.stdout.flush()
        os._exit(status)


def leave_soon() -> None:
    """A process that fails ends within seconds: Python's own end would wait there for the other processes."""
    timer = threading.Timer(_LEAVING_SECONDS, os._exit, (_FAILURE,))
    timer.daemon = True
    timer.start()


def goodbye() -> dict[str, bool]:
    """The last word of a process that ends as it should."""
    return {_GOODBYE: True}
