"""What the doctor finds on machines that are well, on such that are not, and that nothing holds it up."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from jaxscale.telemetry.doctor import storage
from jaxscale.telemetry.doctor.checks import CHECKS, Check, run_checks
from jaxscale.telemetry.doctor.devices import gpu_findings
from jaxscale.telemetry.doctor.finding import Finding, Options
from jaxscale.telemetry.doctor.machine import check_cache, check_network
from jaxscale.telemetry.doctor.storage import check_storage
from jaxscale.telemetry.doctor.variables import RULES, variable_findings
from jaxscale.telemetry.doctor.versions import (
    accelerator_findings,
    has_tpu,
    jax_findings,
    python_finding,
)

NAMES = {check.name: check for check in CHECKS}


def states(findings: list[Finding]) -> set[str]:
    return {finding.state for finding in findings}


def words(findings: list[Finding], state: str = "bad") -> str:
    assert all(finding.fix for finding in findings if finding.state != "good")
    return "\n".join(f"{f.words} -> {f.fix}" for f in findings if f.state == state)


@pytest.mark.parametrize(
    ("installed", "state", "fix"),
    [
        ({"jax": "0.11.2", "jaxlib": "0.11.2"}, "good", ""),
        ({"jax": "0.11.2", "jaxlib": "0.10.2"}, "warn", "jaxlib==0.11.2"),
        ({"jaxlib": "0.11.2"}, "bad", "pip install 'jax"),
        (
            {"jax": "0.11.2", "jaxlib": "0.11.2", "jax-cuda13-plugin": "0.11.1"},
            "bad",
            "jax-cuda13-plugin==0.11.2",
        ),
        (
            {
                "jax": "0.11.2",
                "jaxlib": "0.11.2",
                "jax-cuda12-plugin": "0.11.2",
                "jax-cuda13-pjrt": "0.11.2",
            },
            "bad",
            "pip uninstall jax-cuda12-plugin",
        ),
    ],
)
def test_parts_of_jax_that_do_not_fit(installed, state, fix) -> None:
    findings = jax_findings(installed)
    assert state in states(findings)
    assert states(findings) <= {"good", state}
    assert fix in "".join(finding.fix for finding in findings)


def test_python_that_is_too_old() -> None:
    assert python_finding((3, 10)).state == "bad"
    assert python_finding((3, 11)).state == "good"


def test_hardware_that_jax_cannot_use() -> None:
    found = accelerator_findings({"jax": "1"}, has_gpu=True, has_tpu=True)
    assert {"pip install 'jaxscale[cuda]'", "pip install 'jaxscale[tpu]'"} == {f.fix for f in found}
    fine = {"jax-cuda13-plugin": "1", "libtpu": "1"}
    assert accelerator_findings(fine, has_gpu=True, has_tpu=True) == []
    assert accelerator_findings({}, has_gpu=False, has_tpu=False) == []


def test_a_tpu_is_told_from_a_network_card_of_the_same_vendor(tmp_path) -> None:
    for slot, number in (("0000:00:04.0", "0x0042"), ("0000:00:05.0", "0x0062")):
        device = tmp_path / slot
        device.mkdir()
        (device / "vendor").write_text("0x1ae0\n")
        (device / "device").write_text(f"{number}\n")
        # gVNIC comes first; then a v5p.
        assert has_tpu(tmp_path) == (number == "0x0062")


def on_gpu(**environment: str) -> list[Finding]:
    return variable_findings(environment, has_gpu=True, has_tpu=False, interfaces=["lo", "eth0"])


@pytest.mark.parametrize(
    ("variable", "value", "state"),
    [
        ("NCCL_P2P_DISABLE", "1", "warn"),
        ("NCCL_P2P_DISABLE", "0", "good"),
        ("CUDA_VISIBLE_DEVICES", "", "bad"),
        ("CUDA_VISIBLE_DEVICES", "0,1", "good"),
        ("JAX_PLATFORMS", "cpu", "bad"),
        ("JAX_PLATFORMS", "cuda,cpu", "good"),
        ("NCCL_SOCKET_IFNAME", "eth", "good"),
        ("NCCL_SOCKET_IFNAME", "=eth", "bad"),
        ("NCCL_SOCKET_IFNAME", "ib0", "bad"),
        ("NCCL_SOCKET_IFNAME", "^docker", "good"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.3", "warn"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9", "good"),
        ("https_proxy", "http://proxy:1", "warn"),
        ("XLA_FLAGS", "--xla_dump_to=/tmp/x", "warn"),
        ("TPU_LIBRARY_PATH", "/nowhere", "good"),  # There is no TPU here.
        ("SOMETHING_ELSE", "1", "good"),
    ],
)
def test_variables_that_hurt(variable, value, state) -> None:
    findings = on_gpu(**{variable: value})
    assert states(findings) == {state}
    assert state == "good" or f"{variable}" in findings[0].words


def test_every_rule_says_what_to_do() -> None:
    assert all(rule.fix and rule.words and rule.state in {"warn", "bad"} for rule in RULES)
    assert states(variable_findings({}, has_gpu=True, has_tpu=True, interfaces=[])) == {"good"}


def test_a_proxy_with_exceptions_is_fine() -> None:
    assert states(on_gpu(https_proxy="http://proxy:1", no_proxy=".local")) == {"good"}


def test_storage_that_is_well_is_left_as_it_was(tmp_path) -> None:
    findings = check_storage(Options(str(tmp_path / "not" / "yet")))
    assert "bad" not in states(findings)
    assert "one process alone can create a file" in words(findings, "good")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path) -> None:
    """/proc takes no files, from nobody: a test as root is stopped by no permission."""
    found = words(check_storage(Options("/proc")))
    assert "/proc cannot be written" in found
    assert "--run-dir" in found


def test_storage_that_breaks_a_promise_is_named(tmp_path, monkeypatch) -> None:
    """A file system whose rename copies and leaves the old name behind (as some object stores' do)."""

    def copies(self, target):
        target.write_text(self.read_text())
        return target

    monkeypatch.setattr(storage.Path, "replace", copies)
    assert "replacing a file leaves both or neither" in words(check_storage(Options(str(tmp_path))))


def test_storage_whose_clock_is_wrong(tmp_path, monkeypatch) -> None:
    now = time.time()
    monkeypatch.setattr(storage.time, "time", lambda: now + 90.0)
    assert "differ by 90 s" in words(check_storage(Options(str(tmp_path))), "warn")


def test_storage_that_fills_up(tmp_path, monkeypatch) -> None:
    usage = storage.shutil.disk_usage(tmp_path)
    for free, state in ((2**29, "bad"), (2**33, "warn"), (2**40, "good")):
        monkeypatch.setattr(
            storage.shutil, "disk_usage", lambda _p, free=free: usage._replace(free=free)
        )
        found = check_storage(Options(str(tmp_path)))
        assert [f.state for f in found if "free on" in f.words] == [state]


def test_a_port_that_is_taken_and_one_that_is_not() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = check_network(Options(port=port))
        reached = check_network(Options(port=port, coordinator=f"127.0.0.1:{port}"))
    assert f"port {port}" in words(taken)
    assert "is reached" in words(reached, "good")
    free = check_network(Options(port=port, coordinator=f"127.0.0.1:{port}"))
    assert "is free" in words(free, "good")
    assert "is not reached" in words(free)
    assert "no address" in words(check_network(Options(port=port, coordinator="node")))


def test_where_compiled_programs_are_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / ".compile_cache" / "cpu").mkdir(parents=True)
    (tmp_path / ".compile_cache" / "cpu" / "one").write_bytes(b"x" * 2048)
    found = check_cache(Options(str(tmp_path)))
    assert "1 files, 2 KiB" in words(found, "good")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert check_cache(Options(str(tmp_path))) == []


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("0, 12, 81559, 0", set()),
        ("0, 40000, 81559, 0", {"warn"}),
        ("3, 12, 81559, 2", {"bad"}),
        ("0, [N/A], [N/A], [N/A]", set()),
    ],
)
def test_what_the_driver_says_of_a_gpu(line, state) -> None:
    assert states(gpu_findings(line)) == state


def test_checks_run_side_by_side_in_processes_of_their_own(tmp_path) -> None:
    chosen = [NAMES["versions"], NAMES["storage"]]
    findings = run_checks(chosen, Options(str(tmp_path)))
    assert {finding.check for finding in findings} >= {"versions", "storage"}
    assert "bad" not in states(findings)


def python_that(tmp_path, monkeypatch, script: str):
    """The interpreter of the doctor's children: a shell script, as a broken or stuck installation would be."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\n{script}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))


def test_a_check_that_hangs_is_ended_with_its_children_and_named(tmp_path, monkeypatch) -> None:
    python_that(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; sleep 600 & wait")
    began = time.monotonic()
    hurried = Check("storage", "storage", "check_storage", seconds=1.0)
    (finding,) = run_checks([hurried], Options(str(tmp_path)))
    assert time.monotonic() - began < 60  # And not 600.
    assert (finding.state, finding.words) == ("bad", "no answer within 1 s")
    assert "mount" in finding.fix
    group = int((tmp_path / "pid").read_text())
    ended = time.monotonic() + 20
    while _alive(group):
        assert time.monotonic() < ended


def _alive(group: int) -> bool:
    """Whether a process of the group runs (one that nobody has asked about stays as a name)."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False
    )
    return any(line and not line.startswith("Z") for line in done.stdout.split())


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            'echo Traceback >&2; echo "ImportError: libcudart.so.13: no such file" >&2; exit 1',
            "ImportError: libcudart.so.13: no such file",
        ),
        ("exit 3", "status 3"),
        ("kill -SEGV $$", "status -11"),
    ],
)
def test_a_check_that_breaks_is_a_finding_and_no_traceback(
    tmp_path, monkeypatch, script, words
) -> None:
    python_that(tmp_path, monkeypatch, script)
    (finding,) = run_checks([NAMES["versions"]], Options(str(tmp_path)))
    assert finding.words == f"the check itself failed: {words}"
    assert finding.fix


def test_findings_travel_as_json(tmp_path) -> None:
    command = [sys.executable, "-m", "jaxscale.telemetry.doctor.checks", "storage"]
    options = json.dumps(asdict(Options(str(tmp_path))))
    done = subprocess.run(
        [*command, options], capture_output=True, text=True, check=True, env=os.environ
    )
    findings = [Finding(**one) for one in json.loads(done.stdout.splitlines()[-1])]
    assert findings
    assert {finding.check for finding in findings} <= {"storage", "clock"}
