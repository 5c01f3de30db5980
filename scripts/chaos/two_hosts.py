"""Two hosts on one machine: network namespaces with names and addresses of their own, a switch between them.

Linux, and root (or another way to the right to make namespaces). A cut is a cable pulled out of the switch: both ends
still have their link, and packets go nowhere.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NODES = ("node0", "node1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
# $0: the file of names; $1: the host's own name; behind them its command.
_BECOME_HOST = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'


class NoNamespaces(Exception):
    """This machine makes none; the text says why."""


@dataclass(frozen=True)
class TwoHosts:
    """Running hosts (`two_hosts`). prefix: of their names among the machine's namespaces."""

    prefix: str
    names: Path

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """What runs `command` on a host."""
        outer = [
            "ip",
            "netns",
            "exec",
            f"{self.prefix}-{NODES[host]}",
            "unshare",
            "--uts",
            "--mount",
        ]
        return [*outer, "sh", "-c", _BECOME_HOST, str(self.names), NODES[host], *command]

    def cut(self) -> None:
        """The second host's cable is pulled."""
        self._switch("link", "set", "port1", "nomaster")

    def heal(self) -> None:
        self._switch("link", "set", "port1", "master", "bridge")

    def _switch(self, *words: str) -> None:
        _ip("-n", f"{self.prefix}-switch", *words)


@contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Hosts until the end of the block. folder: for a file of their names. Raises NoNamespaces."""
    hosts = TwoHosts(f"jaxscale{os.getpid()}", folder / "hosts")
    lines = [f"{address} {node}" for address, node in zip(ADDRESSES, NODES, strict=True)]
    hosts.names.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
    spaces = [f"{hosts.prefix}-{name}" for name in ("switch", *NODES)]
    try:
        for space in spaces:
            _ip("netns", "add", space)
        _wire(hosts.prefix)
        yield hosts
    finally:
        for space in spaces:
            if Path("/run/netns", space).exists():
                _end_all(space)
                _ip("netns", "del", space)


def _wire(prefix: str) -> None:
    switch = f"{prefix}-switch"
    _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
    _ip("-n", switch, "link", "set", "bridge", "up")
    for index, (node, address) in enumerate(zip(NODES, ADDRESSES, strict=True)):
        space, port = f"{prefix}-{node}", f"port{index}"
        _ip(
            "-n",
            switch,
            "link",
            "add",
            port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            space,
        )
        _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", space, "link", "set", device, "up")


def _end_all(space: str) -> None:
    """What is still running there."""
    for number in _ip("netns", "pids", space).split():
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)


def _ip(*words: str) -> str:
    if shutil.which("ip") is None:
        raise NoNamespaces("no `ip` command (iproute2) here")
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespaces(f"`ip {' '.join(words)}`: {done.stderr.strip()}")
    return done.stdout
