"""`jaxscale doctor` on this machine, which is well, and with something broken."""

import json
import socket
from pathlib import Path

import pytest
from cli_cases import call

CHECKS = {
    *("versions", "devices", "environment", "storage"),
    *("compile cache", "clock", "limits", "network"),
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def test_everything_is_looked_at_and_works_here(tmp_path: Path) -> None:
    answer = call("doctor", "--storage", tmp_path, "--port", free_port(), "--json")
    found = json.loads(answer.out)
    assert (answer.status, found["works"]) == (0, True), found
    assert {one["check"] for one in found["findings"]} == CHECKS
    (devices, _works) = [one for one in found["findings"] if one["check"] == "devices"]
    assert devices["words"].startswith("8 cpu")
    # Findings that are not good have a fix, and no others.
    assert all(bool(one["fix"]) == (one["state"] != "good") for one in found["findings"])


def test_what_will_not_work_is_status_2_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nosuch0")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        answer = call("doctor", "--storage", "/proc", "--port", taken.getsockname()[1])
    assert answer.status == 2
    out = " ".join(answer.out.split())
    assert "cannot be listened on" in out
    assert "choose another directory with --run-dir" in out
    assert "NCCL_SOCKET_IFNAME=nosuch0" in out
    assert "Traceback" not in answer.out + answer.err
    # /proc has no room and takes no files; the port; the interface.
    assert out.endswith("4 that will not work")
