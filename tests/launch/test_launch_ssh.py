"""`jaxscale launch ssh`: commands, and a run through a stand-in for ssh that uses a real shell."""

import io
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from fake_programs import Fakes
from golden_text import check_golden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launch_cases import ROOT, call, free_port, write_config

from jaxscale.errors import UserError
from jaxscale.launch.attend import attend
from jaxscale.launch.hosts_file import Host, read_hosts
from jaxscale.launch.remote import Remote, in_directory, make_directory, pack, training_command
from jaxscale.launch.run import progress_of_log
from jaxscale.launch.train_command import TrainCommand

# Anything that a path or an override may hold: no NUL, which no argument has, no lone surrogates, which no file has.
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
AWKWARD = [
    "a b",
    "$HOME `id` $(id)",
    "'\"",
    "\\n\n\t",
    "*?[x]{1,2}",
    ";&|<>#!~",
    "-n",
    "",
    "é\u2028",
]


def hosts_file(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text, encoding="utf-8")
    return path


def test_dry_run_is_the_golden_text(tmp_path: Path) -> None:
    hosts = hosts_file(tmp_path, "# two machines\nnode1\nme@node2 slots=2  # two GPUs\n")
    answer = call(
        "launch", "ssh", write_config(tmp_path), "model.num_layers=2", "training.sample_prompts=['a $b']",
        "--hosts", hosts, "--directory", "~/the run", "--ship", "--setup", "make venv", "--env", "A=b c",
        "--run-dir", "/shared/run", "--grace", "60", "--ssh-option", "Port=2222", "--dry-run",
    )  # fmt: skip
    assert (answer.status, answer.err) == (0, "")
    check_golden("ssh.txt", answer.out.replace(str(tmp_path), "FOLDER"))


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints its arguments, each with a NUL behind it."""
    path = tmp_path_factory.mktemp("echo") / "echo"
    path.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    path.chmod(0o755)
    return path


def through_sh(command: str, home: Path) -> list[str]:
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        check=True,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    words=st.lists(WORDS | st.sampled_from(AWKWARD), max_size=4),
    directory=st.sampled_from(AWKWARD[:-2]),
)
def test_every_word_arrives_as_it_was(
    echo: Path, tmp_path_factory: pytest.TempPathFactory, words: list[str], directory: str
) -> None:
    home = tmp_path_factory.mktemp("home")
    remote = Remote(f"~/d/{directory}", str(echo), {"VALUE": "".join(words)}, 5)
    train = TrainCommand(("jaxscale",), "run.yaml", words, directory)
    through_sh(make_directory(remote.directory), home)
    assert (home / "d" / directory).is_dir()
    arrived = through_sh(training_command(remote, train, {}), home)
    assert arrived[arrived.index("--") + 1 :] == list(train.argv)
    assert list(train.argv)[-len(words) :] == words or not words


@pytest.mark.parametrize("value", AWKWARD)
def test_variables_arrive_as_they_were(tmp_path: Path, value: str) -> None:
    place = tmp_path / "a b;exit 3"
    place.mkdir()
    remote = Remote(str(place), "sh", {"VALUE": value}, 5)
    command = training_command(remote, TrainCommand((), "", (), ""), {})
    printing = command.partition(" sh -m ")[0] + ' sh -c \'printf %s "$VALUE"; printf "\\0"\''
    assert through_sh(printing, tmp_path) == [value]


def test_a_directory_that_is_missing_ends_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", in_directory("/nowhere/at all", "echo here")], capture_output=True, check=False
    )
    assert done.returncode != 0
    assert done.stdout == b""


def test_hosts(tmp_path: Path) -> None:
    text = "\n# comment\n 10.0.0.1\nme@gpu-1.cluster slots=8 # big\n[fe80::1]\n"
    expected = [Host("10.0.0.1"), Host("me@gpu-1.cluster", 8), Host("[fe80::1]")]
    assert read_hosts(hosts_file(tmp_path, text)) == expected
    assert expected[1].address == "gpu-1.cluster"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read the hosts in"),
        ("", "names no host"),
        ("# nobody\n\n", "names no host"),
        ("node1\nnode2 slots=x\n", "line 2: 'node2 slots=x' is no host"),
        ("node1 slots=0\n", "line 1: slots=0; at least 1"),
        ("-oProxyCommand=evil\n", "is no host"),
        ("node1;reboot\n", "is no host"),
        ("node1\nnode1\n", "names node1 more than once"),
        ("\xff\xfe", "is no host"),
    ],
)
def test_a_hosts_file_with_a_mistake(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "missing" if text is None else hosts_file(tmp_path, text)
    answer = call("launch", "ssh", write_config(tmp_path), "--hosts", path, "--dry-run")
    assert answer.status == 2
    assert words in answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--env", "1A=b"), "--env '1A=b': write NAME=value"),
        (("--env", "A"), "--env 'A': write NAME=value"),
        (("--coordinator", "node1:x"), "--coordinator='node1:x' is no address"),
        (("training.step=1",), "training.step"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    hosts = hosts_file(tmp_path, "node1\n")
    answer = call(
        "launch", "ssh", write_config(tmp_path), "--hosts", hosts, *arguments, "--dry-run"
    )
    assert answer.status == 2
    assert words in answer.err


def test_without_ssh_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = call("launch", "ssh", write_config(tmp_path), "--hosts", hosts_file(tmp_path, "node1"))
    assert answer.status == 2
    assert "ssh is not on the PATH" in answer.err


def test_shipping_stops_where_a_machine_cannot_be_prepared(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project arrives at both machines; the preparation fails at the first, and nothing is started."""
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "pyproject.toml").write_text("[project]")
    (project / "src/a b.py").write_text("x = 1")
    monkeypatch.chdir(project)
    hosts = hosts_file(tmp_path, "one\ntwo\n")
    answer = call(
        "launch",
        "ssh",
        write_config(tmp_path),
        "--hosts",
        hosts,
        "--ship",
        "--setup",
        "test -f src/a\\ b.py && exit 7",
    )
    assert answer.status == 1
    assert answer.err == "error: ssh ended with status 7; nothing was started\n"
    assert [call[-2] for call in fakes.calls()] == ["one", "two", "one"]
    for machine in ("one", "two"):
        assert (fakes.folder / "home" / machine / "jaxscale-run/src/a b.py").read_text() == "x = 1"


def test_a_copy_of_the_project_leaves_out_history_runs_and_environments(tmp_path: Path) -> None:
    for name in (
        "pyproject.toml",
        ".git/config",
        "runs/x",
        "a/__pycache__/b.pyc",
        ".venv/lib",
        "a/b.py",
    ):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text(name)
    pack(tmp_path / "p", tmp_path / "p/runs/out.tar.gz")
    with tarfile.open(tmp_path / "p/runs/out.tar.gz") as file:
        assert {one.name for one in file if one.isfile()} == {"./pyproject.toml", "./a/b.py"}
    with pytest.raises(UserError, match=r"has no pyproject\.toml"):
        pack(tmp_path, tmp_path / "x.tar.gz")


def test_processes_over_ssh_meet_and_say_a_mistake_once(tmp_path: Path, fakes: Fakes) -> None:
    """Two machines by name, one in truth: both processes start, meet, and find that there is no text."""
    config = write_config(tmp_path)
    answer = call(
        "launch", "ssh", config, f"data.train={tmp_path}/no text", "--hosts", hosts_file(tmp_path, "one\ntwo\n"),
        "--directory", tmp_path, "--python", sys.executable, "--run-dir", tmp_path / "run",
        "--coordinator", f"127.0.0.1:{free_port()}", "--env", f"PYTHONPATH={ROOT}",
        "--env", "JAX_PLATFORMS=cpu", "--env", "JAX_NUM_CPU_DEVICES=1",
    )  # fmt: skip
    assert answer.status == 2, answer
    assert answer.err.startswith("error: ")
    assert "no text" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert {call[-2] for call in fakes.calls()} == {"one", "two"}


def test_progress_elsewhere_is_read_from_what_was_said(tmp_path: Path) -> None:
    log = tmp_path / "process-0.log"
    assert progress_of_log(log) == (0, 0)
    old = "--- attempt 1, now\nx, from scratch\nstep 30/50  loss 1\n"
    log.write_text(old)
    assert progress_of_log(log) == (0, 30)
    log.write_text(old + "--- attempt 2, now\nx, resuming behind step 20\n")
    assert progress_of_log(log) == (20, 20)
    log.write_text(old + "--- attempt 2, now\nx, resuming behind step 20\nstep 21/50  loss 1\n")
    assert progress_of_log(log) == (20, 21)


class Orders(io.StringIO):
    """Standard input of the one who attends: a line when told, and the end when told."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str | None] = []
        self._more = threading.Condition()

    def give(self, line: str | None) -> None:
        with self._more:
            self._lines.append(line)
            self._more.notify()

    def __next__(self) -> str:
        with self._more:
            self._more.wait_for(lambda: self._lines)
            line = self._lines.pop(0)
        if line is None:
            raise StopIteration
        return line


def attended(tmp_path: Path, program: str, *orders: str | None, grace: float = 5) -> int:
    """Status of a program that is given orders once it is ready."""
    ready, given = tmp_path / "ready", Orders()

    def give() -> None:
        until = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < until:
            time.sleep(0.02)
        for order in orders:
            given.give(order)

    threading.Thread(target=give, daemon=True).start()
    command = f"import pathlib, signal, sys, time; {program}; pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    return attend([sys.executable, "-c", command], given, grace)


def test_orders_are_signals(tmp_path: Path) -> None:
    saves = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))"
    assert attended(tmp_path, saves, "nonsense\n", "TERM\n") == 75


def test_a_broken_connection_asks_first_and_then_kills(tmp_path: Path) -> None:
    assert attended(tmp_path, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))", None) == 75
    (tmp_path / "ready").unlink()
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    assert attended(tmp_path, deaf, None, grace=0.5) == 128 + signal.SIGKILL


def test_attend_is_a_program(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "jaxscale.launch.attend", "--", "sh", "-c", "exit 7"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, cwd=ROOT, check=False)
    assert done.returncode in {7, 128 + signal.SIGTERM}  # Its standard input ends at once.
    assert shlex.join(words[2:]).startswith("jaxscale.launch.attend --")
