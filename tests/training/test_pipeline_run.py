"""Whole runs on pipelines: resumed on other meshes, over two processes, and refused where they make no sense."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_cases import records, write_config

from jaxscale.cli.main import run as run_command
from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.training.run import train_run, warn_of_idle_stages

CHILD = Path(__file__).with_name("process_child.py")
COMMON = ("model.num_layers=5", "training.schedule.name=constant", "checkpoint.every=2")
PIPELINE = ("plan.pipeline=4", "plan.data=2", "plan.microbatches=4")
FSDP = ("plan.fsdp=8", "plan.microbatches=1")
INTERLEAVED = (
    "plan.pipeline=2",
    "plan.virtual_stages=2",
    "plan.schedule=interleaved",
    "plan.fsdp=2",
    "plan.tensor=2",
    "plan.microbatches=4",
    "training.global_batch=8",
)


def test_a_run_goes_from_pipeline_to_fsdp_and_back(tmp_path: Path) -> None:
    """Two steps each on pipeline 4 (uneven stages), fsdp 8, and interleaved stages beside fsdp and tensor.

    The batches are the same, layers are stored in the model's order, and losses, evaluations and samples are those of
    one run on fsdp 8: 1e-5 relative, as between other meshes.
    """
    config, run, silent = write_config(tmp_path), tmp_path / "run", "training.sample_tokens=0"
    for steps, plan in ((2, PIPELINE), (4, FSDP), (6, INTERLEAVED)):
        train_run(load_config(config, [*COMMON, *plan, f"training.steps={steps}", silent]), run)
    ended = train_run(load_config(config, [*COMMON, *PIPELINE, "training.steps=8"]), run)
    whole = tmp_path / "whole"
    wanted = train_run(load_config(config, [*COMMON, *FSDP, "training.steps=8"]), whole)
    expected, found = records(whole, "loss"), records(run, "loss")
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    last = records(whole, "eval_loss")[8]
    np.testing.assert_allclose(records(run, "eval_loss")[8], last, rtol=1e-5)
    assert ended.sample == wanted.sample


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def run_processes(count: int, config: Path, run: Path, overrides: list[str]) -> list[str]:
    """What failed of `count` processes with four devices in all: empty if none did."""
    # The quick way to make loops (tests/conftest.py) does not round alike in programs of other process counts.
    flags = os.environ["XLA_FLAGS"].replace("--xla_cpu_use_fusion_emitters=false", "")
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(4 // count), "XLA_FLAGS": flags}
    arguments = [str(count), str(free_port()), str(config), str(run), *overrides]
    started = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(process), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(count)
    ]
    ended = [(process.communicate(timeout=250)[0], process.returncode) for process in started]
    return [output[-1500:] for output, code in ended if code]


def test_two_processes_hold_two_stages_each(tmp_path: Path) -> None:
    """Over gloo, with a checkpoint and an evaluation: bitwise the losses of one process with the same four devices.

    A second try is given: gloo stops waiting for a process that a busy machine holds up.
    """
    config = write_config(tmp_path)
    plan = [
        *COMMON,
        "plan.pipeline=4",
        "plan.microbatches=4",
        "training.steps=4",
        "training.sample_tokens=0",
    ]
    assert not run_processes(1, config, tmp_path / "one", plan)
    run = tmp_path / "two"
    if failed := run_processes(2, config, run, plan):
        run = tmp_path / "again"
        assert not run_processes(2, config, run, plan), failed
    for metric in ("loss", "grad_norm", "eval_loss"):
        assert records(run, metric) == records(tmp_path / "one", metric)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["plan.pipeline=8", "plan.microbatches=8"], "makes 8 chunks, but the model has 5 layers"),
        (
            ["plan.pipeline=2", "plan.schedule=1f1c"],
            "'gpipe', '1f1b', 'interleaved' or 'zb-h1', got '1f1c'",
        ),
        (["plan.pipeline=2", "plan.fsdp=4", "plan.stage_layers=[2,2]"], "the model has 5 layers"),
        (["plan.pipeline=4", "plan.data=2", "plan.virtual_stages=2"], "take schedule interleaved"),
        (
            ["plan.pipeline=2", "plan.tensor=4", "model.num_heads=6", "model.num_kv_heads=6"],
            "of size 6 does not divide",
        ),
    ],
)
def test_mistakes_are_one_message_and_exit_2(
    overrides: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["train", str(write_config(tmp_path)), "model.num_layers=5", *overrides]
    run_dir = ["--run-dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["jaxscale", *arguments, *run_dir])
    with pytest.raises(SystemExit) as stopped:
        run_command()
    error = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2, error
    assert words in error


def test_too_few_microbatches_are_worth_a_warning() -> None:
    said: list[str] = []
    warn_of_idle_stages(Plan(pipeline=4, microbatches=2), said.append)
    assert said == [
        "warning: microbatches=2 for pipeline=4: stages are idle for 60% of a step; microbatches=7 would halve that"
    ]
    warn_of_idle_stages(Plan(pipeline=4, microbatches=4), said.append)
    assert len(said) == 1
