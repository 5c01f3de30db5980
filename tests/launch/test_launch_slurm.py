"""`jaxscale launch slurm`: the script, read as sbatch and bash read it, and run with a stand-in for srun."""

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fake_programs import Fakes
from golden_text import check_golden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launch_cases import call, write_config

from jaxscale.errors import UserError
from jaxscale.launch.slurm import SlurmJob, sbatch_script
from jaxscale.launch.train_command import TrainCommand

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
    "{setup}",
]
JOB = SlurmJob(
    name="llama",
    nodes=4,
    tasks_per_node=8,
    train=TrainCommand(
        ("jaxscale",), "run.yaml", ("training.sample_prompts=['a $b']",), "runs/llama"
    ),
    directory="/shared/my project",
    logs="/shared/my project/runs/llama/logs",
    gpus_per_node=8,
    time="1-00:00",
    partition="gpu",
    options=("constraint=h100&nvlink", "exclusive"),
    setup=("module load cuda",),
    environment={"NCCL_DEBUG": "WARN", "NOTE": "it's"},
)


def options(script: str) -> dict[str, str]:
    """What sbatch reads: #SBATCH lines up to the first command, each split as a shell does."""
    head = re.split(r"(?m)^(?!#|$)", script)[0]
    lines = [
        line.removeprefix("#SBATCH ") for line in head.splitlines() if line.startswith("#SBATCH ")
    ]
    words = [shlex.split(line) for line in lines]
    assert all(len(one) == 1 for one in words)
    found = [one[0].removeprefix("--").partition("=") for one in words]
    return {name: value for name, _, value in found}


def test_the_script_is_the_golden_text() -> None:
    check_golden("slurm.sbatch", sbatch_script(JOB))


def test_bash_can_read_it() -> None:
    subprocess.run(["bash", "-n"], input=sbatch_script(JOB), text=True, check=True)


def test_sbatch_reads_what_was_meant() -> None:
    assert options(sbatch_script(JOB)) == {
        "job-name": "llama",
        "nodes": "4",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "time": "1-00:00",
        "partition": "gpu",
        "chdir": "/shared/my project",
        "output": "/shared/my project/runs/llama/logs/slurm-%j.log",
        "open-mode": "append",
        "signal": "TERM@120",
        "requeue": "",
        "constraint": "h100&nvlink",
        "exclusive": "",
    }


def test_a_percent_sign_in_a_path_is_no_pattern_of_slurm() -> None:
    job = replace(JOB, logs="/shared/100%j")
    assert options(sbatch_script(job))["output"] == "/shared/100%%j/slurm-%j.log"


def run_script(job: SlurmJob, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SLURM_JOB_ID": "77"}
    script = sbatch_script(replace(job, directory=str(folder)))
    return subprocess.run(
        ["bash"], input=script, text=True, capture_output=True, check=False, env=environment
    )


@settings(
    max_examples=25, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(words=st.lists(WORDS | st.sampled_from(AWKWARD), min_size=1, max_size=4))
def test_every_word_arrives_at_srun(fakes: Fakes, tmp_path: Path, words: list[str]) -> None:
    train = TrainCommand(("jaxscale",), words[0], words[1:], words[-1])
    job = replace(JOB, train=train, setup=(), environment={"VALUE": words[0]})
    before = len(fakes.calls())
    assert run_script(job, tmp_path).returncode == 0
    (called,) = fakes.calls()[before:]
    assert called == ["srun", "--kill-on-bad-exit=0", "--wait=60", "--label", *train.argv]


def quiet(job: SlurmJob) -> SlurmJob:
    return replace(job, setup=(), environment={}, train=replace(job.train, run_dir="run"))


@pytest.mark.parametrize("status", [0, 2])
def test_an_end_and_a_mistake_end_the_job(fakes: Fakes, tmp_path: Path, status: int) -> None:
    fakes.statuses(status)
    assert run_script(quiet(JOB), tmp_path).returncode == status
    assert [call[0] for call in fakes.calls()] == ["srun"]


def test_a_preempted_run_goes_back_into_the_queue(fakes: Fakes, tmp_path: Path) -> None:
    fakes.statuses(75)
    assert run_script(quiet(JOB), tmp_path).returncode == 75
    assert fakes.calls()[1:] == [["scontrol", "requeue", "77"], ["sleep", "60"]]


def test_failures_are_started_again_with_growing_pauses_up_to_the_limit(
    fakes: Fakes, tmp_path: Path
) -> None:
    fakes.statuses(*[137] * 9)
    done = run_script(replace(quiet(JOB), max_restarts=3), tmp_path)
    assert done.returncode == 1
    assert [call[1] for call in fakes.calls() if call[0] == "sleep"] == ["2", "4", "8"]
    assert (
        "given up after 3 restarts without a newer checkpoint; the last status was 137"
        in done.stderr
    )


def test_a_newer_checkpoint_gives_new_patience(fakes: Fakes, tmp_path: Path) -> None:
    """A stand-in for srun that leaves a checkpoint each time fails six times, and three restarts are allowed."""
    srun = fakes.folder / "bin/srun"
    srun.write_text(
        f"#!/bin/sh\nn=$(ls {tmp_path}/run/checkpoints | wc -l)\n"
        f"mkdir -p {tmp_path}/run/checkpoints/$((n + 5))0\n[ $n -ge 6 ]\n"
    )
    (tmp_path / "run/checkpoints/7.0.saving").mkdir(parents=True)
    done = run_script(replace(quiet(JOB), max_restarts=3), tmp_path)
    assert done.returncode == 0
    assert [call[1] for call in fakes.calls() if call[0] == "sleep"] == ["2"] * 5
    assert "restart 1 of 3 from step 100 in 2 s" in done.stderr


def test_the_command_writes_the_script_and_submits_it(tmp_path: Path, fakes: Fakes) -> None:
    config = write_config(tmp_path)
    where = ("--directory", tmp_path, "--gpus-per-node", "4", "--nodes", "2", "--time", "60")
    answer = call("launch", "slurm", config, *where)
    assert answer.status == 0, answer
    script = tmp_path / "runs/tiny/launch.sbatch"
    assert fakes.calls() == [["sbatch", str(script)]]
    assert options(script.read_text())["ntasks-per-node"] == "4"
    assert (tmp_path / "runs/tiny/logs").is_dir()  # Slurm makes no folder for its log.
    assert call("launch", "slurm", config, *where, "--dry-run").out == script.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": 0}, "--nodes 0: at least 1"),
        (
            {"tasks_per_node": 3},
            "3 tasks a node with 8 GPUs: use --tasks-per-node 8 (a process per GPU) or 1",
        ),
        ({"time": "soon"}, "--time 'soon': write minutes"),
        ({"options": ("--constraint=x",)}, "without its dashes"),
        ({"options": ("comment=a\nb",)}, "without its dashes"),
        ({"partition": 'a"b'}, "sbatch cannot take"),
    ],
)
def test_mistakes(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as raised:
        sbatch_script(replace(JOB, **change))
    assert words in str(raised.value)


def test_without_slurm_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = call("launch", "slurm", write_config(tmp_path), "--directory", tmp_path)
    assert answer.status == 2
    assert "sbatch is not on the PATH" in answer.err


@pytest.mark.parametrize(
    ("directory", "looks_in"),
    [("kept", "run/kept"), ("{folder}/other place", "other place"), ("file://{folder}/x", "x")],
)
def test_newer_checkpoints_are_looked_for_where_the_run_keeps_them(
    tmp_path: Path, directory: str, looks_in: str
) -> None:
    for step in ("9", "30", "31.0.saving"):
        (tmp_path / looks_in / step).mkdir(parents=True)
    job = replace(JOB, checkpoints=directory.format(folder=tmp_path))
    assert newest(job, tmp_path) == "30"


def test_checkpoints_in_a_store_are_listed_by_the_program_of_the_run(tmp_path: Path) -> None:
    """Its answer is that of `jaxscale checkpoint ls --json`: a list of objects with a step each, indented by two."""
    program = tmp_path / "jaxscale"
    answer = json.dumps([{"step": 4, "groups": [{"name": "step"}]}, {"step": 12}], indent=2)
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\ncat <<'END'\n{answer}\nEND\n")
    program.chmod(0o755)
    train = replace(JOB.train, program=(str(program),))
    job = replace(JOB, train=train, checkpoints="s3://bucket/a run")
    assert newest(job, tmp_path) == "12"
    assert (tmp_path / "asked").read_text() == "checkpoint ls s3://bucket/a run --json\n"


def newest(job: SlurmJob, folder: Path) -> str:
    """What the script takes for the newest checkpoint of the run in `folder`."""
    (function,) = (line for line in sbatch_script(job).splitlines() if line.startswith("newest()"))
    done = subprocess.run(
        ["bash", "-c", f"run={folder}/run\n{function}\nnewest"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
