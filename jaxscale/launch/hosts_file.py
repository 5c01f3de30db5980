"""A file of machines, one a line: `[user@]host [slots=N]`; `#` begins a comment."""

import re
from dataclasses import dataclass
from pathlib import Path

from jaxscale.errors import UserError

# What ssh would take for an option, or a shell for more than a word, is no name of a machine.
_HOST = re.compile(r"(?:[\w.-]+@)?(?:[A-Za-z0-9_][\w.-]*|\[?[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*\]?)")
_SLOTS = re.compile(r"slots=(\d{1,4})")


@dataclass(frozen=True)
class Host:
    """name: as ssh takes it. slots: processes on it; with more than one, each has one GPU."""

    name: str
    slots: int = 1

    @property
    def address(self) -> str:
        return self.name.rpartition("@")[2]


def read_hosts(path: Path) -> list[Host]:
    """The machines, in order. Raises UserError for a file that is not there, or empty, or a line that is no machine."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the hosts in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; it should name a host a line") from None
    hosts = [
        _host(path, number, words)
        for number, line in enumerate(lines, start=1)
        if (words := line.partition("#")[0].split())
    ]
    if not hosts:
        raise UserError(f"{path} names no host; write one a line: [user@]host [slots=N]")
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{path} names {', '.join(twice)} more than once; use slots=N for several processes"
        )
    return hosts


def _host(path: Path, number: int, words: list[str]) -> Host:
    slots = [_SLOTS.fullmatch(word) for word in words[1:]]
    if not _HOST.fullmatch(words[0]) or None in slots or len(slots) > 1:
        raise UserError(
            f"{path}, line {number}: {' '.join(words)!r} is no host; write [user@]host [slots=N]"
        )
    count = int(slots[0][1]) if slots and slots[0] else 1
    if count < 1:
        raise UserError(f"{path}, line {number}: slots={count}; at least 1")
    return Host(words[0], count)
