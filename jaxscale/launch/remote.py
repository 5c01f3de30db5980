"""Commands for another machine's shell, and files brought to it. Whatever a word contains arrives as it was."""

import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxscale.errors import UserError
from jaxscale.launch.train_command import TrainCommand
from jaxscale.training.health.preemption import GRACE_VARIABLE

# What a copy of the project does not need, by name, wherever it is.
_LEFT_OUT = frozenset(
    (
        ".git",
        ".venv",
        "runs",
        "__pycache__",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        "build",
        "dist",
    )
)
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Remote:
    """Where and how a run lives on its machines.

    directory: where it runs, and where code is brought to. python: the interpreter there, relative to `directory`.
    environment: variables of the run. grace: seconds that it has to end in.
    """

    directory: str
    python: str
    environment: Mapping[str, str]
    grace: float


class StepFailed(Exception):
    """A command that prepares machines has failed; what it said is on the screen."""


@dataclass(frozen=True)
class Step:
    """A command that is run before training. stdin: the file that it reads."""

    argv: tuple[str, ...]
    stdin: Path | None = None

    def command(self) -> str:
        source = "" if self.stdin is None else f" < {shlex.quote(str(self.stdin))}"
        return shlex.join(self.argv) + source


def run_steps(steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """One after the other. Raises StepFailed at the first that fails, UserError for a program that is not there."""
    for step in steps:
        say(f"$ {step.command()}")
        status = _run(step)
        if status:
            raise StepFailed(f"{step.argv[0]} ended with status {status}; nothing was started")


def _run(step: Step) -> int:
    check_program(step.argv[0])
    if step.stdin is None:
        return subprocess.run(step.argv, stdin=subprocess.DEVNULL, check=False).returncode
    with step.stdin.open("rb") as source:
        return subprocess.run(step.argv, stdin=source, check=False).returncode


def check_program(name: str) -> None:
    """Raises UserError where a program is not on the PATH."""
    if shutil.which(name) is None:
        raise UserError(
            f"{name} is not on the PATH; install it, or use --dry-run to see what would be run"
        )


def in_directory(directory: str, command: str) -> str:
    """A command for a shell, in a directory; `~/` at its beginning is the remote home."""
    return f"cd {_place(directory)} && {command}"


def make_directory(directory: str) -> str:
    """A command that makes a directory and goes there."""
    return f"mkdir -p {_place(directory)} && cd {_place(directory)}"


def _place(directory: str) -> str:
    if directory == "~" or directory.startswith("~/"):
        return "~/" + shlex.quote(directory[2:]) if directory[2:] else "~"
    return shlex.quote(directory)


def training_command(remote: Remote, train: TrainCommand, added: Mapping[str, str]) -> str:
    """`jaxscale train` under `attend`, as one string for the shell there."""
    fixed = {"PYTHONUNBUFFERED": "1", GRACE_VARIABLE: f"{remote.grace:g}"}
    variables = {**fixed, **remote.environment, **added}
    words = [
        "exec", "env", *(f"{name}={value}" for name, value in variables.items()),
        remote.python, "-m", "jaxscale.launch.attend", "--grace", f"{remote.grace:g}", "--", *train.argv,
    ]  # fmt: skip
    return in_directory(remote.directory, shlex.join(words))


def parse_environment(pairs: Iterable[str]) -> dict[str, str]:
    """`NAME=value` pairs. Raises UserError for what is none."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise UserError(f"--env {pair!r}: write NAME=value")
        found[name] = value
    return found


def pack(project: Path, archive: Path) -> None:
    """The project as a compressed tar file, without its history, environments and runs."""
    if not (project / "pyproject.toml").is_file():
        raise UserError(
            f"{project} has no pyproject.toml: run from the project's directory, or leave out --ship where the "
            "machines have jaxscale already"
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as file:
        file.add(project, arcname=".", filter=_wanted)


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name in _LEFT_OUT else entry
