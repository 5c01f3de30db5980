"""`jaxscale launch tpu-vm`: commands, and a run through a stand-in for gcloud that uses a real shell."""

import json
from pathlib import Path

import pytest
from fake_programs import Fakes
from golden_text import check_golden
from launch_cases import call, write_config

from jaxscale.errors import UserError
from jaxscale.launch.tpu_vm import num_workers

ZONE = ("--zone", "us-east5-a")
READY = json.dumps({"state": "READY", "networkEndpoints": [{"ipAddress": "10.0.0.1"}] * 2})
# Stands for Python in the worker's directory: says which worker it is, what it was asked to run, and that it resumed.
WORKER = """#!/bin/sh
echo "$PWD" "$@"
echo "$VALUE"
"""


def test_dry_run_is_the_golden_text(tmp_path: Path) -> None:
    answer = call(
        "launch", "tpu-vm", "my-tpu", write_config(tmp_path), "training.sample_prompts=['a $b']", *ZONE,
        "--project", "my-project", "--create", "--accelerator", "v5p-16", "--spot", "--run-dir", "/mnt/shared/run",
        "--env", "A=b c", "--dry-run",
    )  # fmt: skip
    assert (answer.status, answer.err) == (0, "")
    check_golden("tpu_vm.txt", answer.out.replace(str(tmp_path), "FOLDER"))


@pytest.mark.parametrize(
    ("accelerator", "workers"),
    [
        ("v4-8", 1),
        ("v4-16", 2),
        ("v5p-128", 16),
        ("v5litepod-8", 1),
        ("v5litepod-16", 4),
        ("v6e-256", 64),
    ],
)
def test_machines_of_a_slice(accelerator: str, workers: int) -> None:
    """VMs that Google's pages give: v5p-128 is 64 chips on 16, v5litepod-16 has 4 (one VM has up to 8 chips alone)."""
    assert num_workers(accelerator) == workers


def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose interpreter is a small script; the current directory."""
    place = folder / "project"
    (place / ".venv/bin").mkdir(parents=True)
    (place / "bin").mkdir()
    (place / "pyproject.toml").write_text("[project]")
    (place / "bin/python").write_text(WORKER)
    (place / "bin/python").chmod(0o755)
    monkeypatch.chdir(place)
    return place


def test_code_and_environment_arrive_and_every_worker_runs(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = project(tmp_path, monkeypatch)
    monkeypatch.setenv("FAKE_TPU", READY)
    value = "it's $HOME; `id`"
    answer = call(
        "launch", "tpu-vm", "my-tpu", write_config(tmp_path), "training.sample_prompts=['a  b']", *ZONE,
        "--setup", "echo ready > made", "--python", "bin/python", "--env", f"VALUE={value}",
    )  # fmt: skip
    assert answer.status == 0, answer
    verbs = [call[4] for call in fakes.calls()]
    assert verbs == ["describe", "scp", "ssh", "ssh", "ssh", "ssh"]
    for worker in ("0", "1"):
        home = fakes.folder / "home" / worker / "jaxscale-run"
        assert (home / "made").read_text() == "ready\n"
        log = (place / f"runs/tiny/logs/process-{worker}.log").read_text().splitlines()[1:]
        assert log[0].startswith(
            f"{home} -m jaxscale.launch.attend --grace 120 -- bin/python -m jaxscale train"
        )
        assert log[0].endswith(f"-- {tmp_path}/tiny.yaml training.sample_prompts=['a  b']")
        assert log[1] == value
        assert f"worker {worker} | {value}" in answer.out
    assert "goes on costing money; gcloud compute tpus tpu-vm delete my-tpu" in answer.out


def test_a_tpu_that_is_made_is_not_asked_about(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, monkeypatch)
    made = ("--create", "--accelerator", "v5p-8", "--setup", "true", "--python", "bin/python")
    answer = call("launch", "tpu-vm", "my-tpu", write_config(tmp_path), *ZONE, *made)
    assert answer.status == 0, answer
    assert [call[4] for call in fakes.calls()] == ["create", "scp", "ssh", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            None,
            "gcloud does not find the TPU my-tpu in us-east5-a: ERROR: NOT_FOUND; --create makes it",
        ),
        ('{"state": "PREEMPTED"}', "the TPU my-tpu is PREEMPTED, not READY"),
        ("nonsense", "in words that are no JSON"),
        ("[]", "in words that are no JSON"),
    ],
)
def test_a_tpu_that_is_not_there(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, state: str | None, words: str
) -> None:
    if state is not None:
        monkeypatch.setenv("FAKE_TPU", state)
    answer = call("launch", "tpu-vm", "my-tpu", write_config(tmp_path), *ZONE)
    assert answer.status == 2
    assert words in answer.err
    assert [call[4] for call in fakes.calls()] == ["describe"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("My_TPU", *ZONE, "--dry-run"), "'My_TPU' cannot name a TPU"),
        (("my-tpu", "--zone", "us-east5", "--dry-run"), "is no zone; for example us-east5-a"),
        (("my-tpu", *ZONE, "--create"), "--create needs --accelerator"),
        (("my-tpu", *ZONE, "--dry-run"), "--dry-run asks Google nothing"),
        (
            ("my-tpu", *ZONE, "--accelerator", "v5p-100", "--dry-run"),
            "no v5p slice has 100 TensorCores",
        ),
        (("my-tpu", *ZONE, "--accelerator", "v5q-8", "--dry-run"), "unknown chip"),
        (("my-tpu", *ZONE, "--accelerator", "v5p:2x2x2", "--dry-run"), "write v5p-128"),
        (("my-tpu", *ZONE, "--accelerator", "tpu7x-16", "--dry-run"), "newer chips run on GKE"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    name, *rest = arguments
    answer = call("launch", "tpu-vm", name, write_config(tmp_path), *rest)
    assert answer.status == 2, answer
    assert words in answer.err


def test_a_zone_must_be_given(tmp_path: Path) -> None:
    answer = call("launch", "tpu-vm", "my-tpu", write_config(tmp_path), "--dry-run")
    assert answer.status == 2
    assert "--zone" in answer.err


def test_without_gcloud_the_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = call("launch", "tpu-vm", "my-tpu", write_config(tmp_path), *ZONE)
    assert answer.status == 2
    assert "gcloud is not on the PATH" in answer.err


def test_unknown_chips_are_errors() -> None:
    with pytest.raises(UserError):
        num_workers("h100-8")
