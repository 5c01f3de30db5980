"""`jaxscale dashboard` as a process: it serves, says where, and ends when it is told to."""

import re
import signal
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest
from cli_cases import call, command

from jaxscale.cli.dashboard import is_loopback


def test_it_serves_runs_until_it_is_interrupted(trained: Path) -> None:
    with subprocess.Popen(
        command("dashboard", trained.parent, "--port", "0"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert address
        with urlopen(address[0], timeout=30) as answer:
            page = answer.read().decode()
        assert f">{trained.name}</a>" in page
        assert "200<small> / 200</small>" in page
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def test_what_is_no_directory(tmp_path: Path) -> None:
    answer = call("dashboard", tmp_path / "none")
    assert answer.status == 2
    assert "no directory" in answer.err


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("10.0.0.1", False), ("example.org", False), ("", False)),
    ],
)
def test_others_can_reach_any_address_but_those_of_loopback(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) == loopback
