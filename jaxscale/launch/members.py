"""The processes of an attempt: described before they are started, and how they ended."""

import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """One process of a run, or the command that runs it on another machine.

    label: before each of its lines. environment: what is added to the launcher's. log: its own file.
    remote: signals reach it as lines on its standard input (`launch.attend`), as ssh passes none on.
    """

    label: str
    argv: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    remote: bool = False

    def command(self) -> str:
        """What a shell would have to be told to start it."""
        added = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*added, shlex.join(self.argv)])


@dataclass(frozen=True)
class Ended:
    """status: exit status, or minus the signal that ended it. stopped: after the launcher had asked it to end.

    message: what it said behind `error: `, without the prefix.
    """

    label: str
    status: int
    stopped: bool = False
    message: str = ""

    def words(self) -> str:
        """`process 3 was killed by SIGKILL`."""
        return f"{_subject(self.label)} {_how(self.status)}"


def described(members: Sequence[Member]) -> str:
    """What `--dry-run` prints: every command, each in a line."""
    return "\n".join(member.command() for member in members)


def _subject(label: str) -> str:
    return f"process {label}" if label.isdecimal() else label


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    names = {one.value: one.name for one in signal.Signals}
    return f"was killed by {names.get(-status, f'signal {-status}')}"
