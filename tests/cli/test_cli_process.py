"""The command as a process: what it imports, and how it ends when somebody stops it or no longer listens."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cli_cases import LARGEST, call, command

from jaxscale import __version__
from jaxscale.cli.main import app

HEAVY = (
    *("jax", "jaxlib", "flax", "optax", "orbax", "tensorstore", "grain", "pyarrow", "tokenizers"),
    *("numpy", "yaml", "fsspec", "tensorboardX"),
)


def commands(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and group of commands, by its words."""
    found = [path]
    for name, one in group.commands.items():
        inner = isinstance(one, typer.core.TyperGroup)
        found += commands(one, (*path, name)) if inner else [(*path, name)]
    return found


EVERY_COMMAND = commands(typer.main.get_group(app))


def test_all_commands_are_there() -> None:
    words = {" ".join(path) for path in EVERY_COMMAND}
    assert {"train", "eval", "generate", "describe", "data prepare", "data inspect"} <= words
    assert {"config show", "config schema"} <= words


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("path", EVERY_COMMAND)
def test_every_command_has_help(path: tuple[str, ...], flag: str) -> None:
    answer = call(*path, flag)
    assert (answer.status, answer.err) == (0, "")
    assert " ".join(("Usage: jaxscale", *path)) in re.sub(r"\s+", " ", answer.out)


def test_the_version_is_printed() -> None:
    assert call("--version").out == f"jaxscale {__version__}\n"


@pytest.mark.parametrize("arguments", [None, "", "--version", "--help", "data prepare --help"])
def test_help_imports_nothing_heavy(arguments: str | None) -> None:
    """Typer itself takes pydantic once a command has options to read; ours is not there yet."""
    program = "import jaxscale" if arguments is None else "from jaxscale.cli.main import run; run()"
    ending = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    words = [sys.executable, "-c", ending + program, *(arguments or "").split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    loaded = set(done.stderr.split())
    assert "jaxscale" in loaded
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(HEAVY)
    assert not {"jaxscale.config", "jaxscale.data", "jaxscale.training"} & loaded
    assert "prepare" in (arguments or "") or "pydantic" not in loaded


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("config", "schema"), ("describe", LARGEST), ("describe", LARGEST, "--json")],
)
def test_a_reader_that_goes_away_is_no_error(arguments: tuple[str | Path, ...]) -> None:
    """`jaxscale ... | head -1`: here the reader is gone before the first line."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command(*arguments), stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""


@pytest.mark.parametrize("name", [("describe",), ("config", "show"), ("data", "inspect")])
def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path: Path, name: tuple[str, ...]) -> None:
    """A named pipe as the configuration: opening it to write waits until the command reads, and then it waits."""
    path = tmp_path / "run.yaml"
    os.mkfifo(path)
    process = subprocess.Popen(
        command(*name, path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with path.open("w"):
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert "Traceback" not in output
    assert process.returncode == 128 + signal.SIGINT


def test_ctrl_c_ends_a_text(trained: Path) -> None:
    """Far more tokens than can be drawn before the signal."""
    prompt, tokens = "The whale ", 5_000
    arguments = (
        "--prompt", prompt, "--tokens", str(tokens), "--temperature", "0",
        "plan.data=1", f"model.max_positions={2 * tokens}",
    )  # fmt: skip
    process = subprocess.Popen(
        command("generate", trained, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    first = process.stdout.read(len(prompt) + 20)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert first.startswith(prompt.encode())
    assert len(first + rest) < tokens
    assert b"Traceback" not in errors
    assert process.returncode == 128 + signal.SIGINT
