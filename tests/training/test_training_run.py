"""Whole runs: what they leave behind, how they resume, and what they say when something is wrong."""

import gc
import json
import math
import random
import shutil
import signal
import statistics
import sys
import time
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from run_cases import own_model, poisoned, records, start, write_config

from jaxscale.checkpoint.layout import listed_steps
from jaxscale.cli.main import run as run_command
from jaxscale.config.loading import load_config
from jaxscale.errors import UserError
from jaxscale.telemetry.memory import memory_metrics
from jaxscale.training import observation
from jaxscale.training.run import train_run

ONE_DEVICE = ("plan.fsdp=1", "plan.data=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(configuration, run directory) of a run on 8 devices that was never interrupted."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder)
    train_run(load_config(config), folder / "whole")
    return config, folder / "whole"


def test_a_run_leaves_what_the_documentation_says(finished: tuple[Path, Path]) -> None:
    _, run = finished
    for name in (
        "config.yaml",
        "plan.yaml",
        "metrics.jsonl",
        "report.html",
        "environment.json",
        "summary.json",
    ):
        assert (run / name).is_file(), name
    assert [
        folder.name for folder in sorted((run / "checkpoints").iterdir(), key=lambda p: int(p.name))
    ] == ["8", "12"]
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert {
        "step",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "mfu",
        "step_seconds",
    } <= first.keys()
    assert {
        "data_wait_seconds",
        "checkpoint_seconds",
        "tokens",
        "host_memory_bytes",
    } <= first.keys()
    assert sorted(records(run, "eval_loss")) == [6, 12]
    assert (run / "samples/12.txt").read_text().startswith("The ")


def test_loss_falls_and_bits_per_byte_are_the_loss_of_bytes(finished: tuple[Path, Path]) -> None:
    """Tokens are bytes, so bits per byte is the loss over ln 2, but for the end-of-document tokens: nats, no bytes."""
    _, run = finished
    losses = records(run, "loss")
    assert losses[12] < losses[1] - 1
    loss, bits = records(run, "eval_loss")[12], records(run, "eval_bits_per_byte")[12]
    assert bits == pytest.approx(loss / math.log(2), rel=0.01)


def test_mfu_is_the_hand_calculation(finished: tuple[Path, Path]) -> None:
    """2 FLOPs a weight of every product and a token, keys seen on average (32 + 1) / 2, times 3 for training."""
    _, run = finished
    summary = json.loads((run / "summary.json").read_text())
    weights = 2 * (4 * 32 * 64 + 3 * 32 * 64) + 32 * 264
    attention = 2 * 2 * (2 * 8 * 8) * 33 / 2
    assert summary["training_flops_per_token"] == 3 * (2 * weights + attention)
    rate, mfu = records(run, "tokens_per_second")[12], records(run, "mfu")[12]
    assert mfu == pytest.approx(rate * summary["training_flops_per_token"] / summary["peak_flops"])


def test_running_a_finished_run_again_changes_nothing(finished: tuple[Path, Path]) -> None:
    config, run = finished
    before = (run / "metrics.jsonl").read_text()
    assert train_run(load_config(config), run).steps == 12
    assert (run / "metrics.jsonl").read_text() == before


CONSTANT = "training.schedule.name=constant"


@pytest.fixture(scope="module")
def constant(finished: tuple[Path, Path]) -> tuple[Path, Path]:
    """Run directories of 12 and of 6 steps at a constant rate: a schedule that does not depend on their number."""
    config, folder = finished[0], finished[1].parent
    for steps in (12, 6):
        settings = load_config(config, [CONSTANT, f"training.steps={steps}"])
        train_run(settings, folder / f"constant{steps}")
    return folder / "constant12", folder / "constant6"


def test_a_longer_run_goes_on_where_the_shorter_one_ended(
    finished: tuple[Path, Path], constant: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, shorter = constant
    run = shutil.copytree(shorter, tmp_path / "run")
    train_run(load_config(finished[0], [CONSTANT, "training.steps=9"]), run)
    expected = records(whole, "loss")
    assert records(run, "loss") == {step: expected[step] for step in range(1, 10)}


def test_another_mesh_goes_on_with_the_same_batches(
    finished: tuple[Path, Path], constant: tuple[Path, Path], tmp_path: Path
) -> None:
    """fsdp 8, then data 2 x fsdp 2 x tensor 2: sums in another order, 1e-5 relative a loss."""
    whole, shorter = constant
    run = shutil.copytree(shorter, tmp_path / "run")
    mesh = ["plan.data=2", "plan.fsdp=2", "plan.tensor=2"]
    train_run(load_config(finished[0], [CONSTANT, "training.steps=12", *mesh]), run)
    expected = records(whole, "loss")
    found = records(run, "loss")
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.slow
def test_kill_at_any_moment_resumes_bitwise(tmp_path: Path) -> None:
    """SIGKILL at three random moments behind the first logged step; checkpoints are written every other step."""
    config = own_model(tmp_path, write_config(tmp_path))
    settings = (
        "training.steps=60",
        "checkpoint.every=2",
        "training.eval_every=20",
        "training.sample_tokens=0",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(config, whole, *settings).wait(300) == 0
    moments = random.Random(20)
    for _ in range(3):
        process = start(config, broken, *settings)
        logged = len(records(broken, "loss")) if (broken / "metrics.jsonl").exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (broken / "metrics.jsonl").exists() and len(_losses_so_far(broken)) > logged:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(config, broken, *settings)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert records(broken, "loss") == records(whole, "loss")
    assert records(broken, "eval_loss") == records(whole, "eval_loss")


def _losses_so_far(run: Path) -> list[str]:
    """Whole lines of a log that is being written."""
    return [
        line for line in (run / "metrics.jsonl").read_text().split("\n")[:-1] if '"loss"' in line
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(configuration, run directory) of a run on one device, in a process of its own."""
    folder = tmp_path_factory.mktemp("alone")
    config = write_config(folder)
    assert start(config, folder / "whole").wait(300) == 0
    return config, folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("largest_file", [64_000, 4_000])
def test_no_room_for_a_checkpoint_stops_the_run_and_loses_nothing(
    alone: tuple[Path, Path], tmp_path: Path, largest_file: int
) -> None:
    """Writes fail for real behind 64 kB (the arrays of a checkpoint), or 4 kB (metrics and report too)."""
    config, whole = alone
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints/12")
    process = start(config, broken, largest_file=largest_file)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "error: " in output
    assert "intact" in output
    assert "Traceback" not in output
    # Writes begun before the failure may land after its folder was removed: invisible, cleared by the next save.
    assert listed_steps(broken / "checkpoints") == [8]
    assert start(config, broken).wait(300) == 0
    assert not list((broken / "checkpoints").glob("*.saving"))
    assert records(broken, "loss") == records(whole, "loss")


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_exits_75(tmp_path: Path) -> None:
    config = own_model(tmp_path, write_config(tmp_path))
    run = tmp_path / "run"
    process = start(
        config, run, "training.steps=100000", "checkpoint.every=0", "training.eval_every=0"
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not _losses_so_far(run):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    saved = [int(folder.name) for folder in (run / "checkpoints").iterdir()]
    assert saved == [max(records(run, "loss"))]
    assert "run the same command to go on" in output


def test_a_module_of_ones_own_trains_with_the_same_command(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    own = own_model(tmp_path, config)
    outcome = train_run(load_config(own), tmp_path / "run")
    losses = records(tmp_path / "run", "loss")
    assert outcome.steps == 12
    assert losses[12] < losses[1]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_loss_that_is_not_a_number_stops_or_is_skipped(
    tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte 90 ('Z') poisons a batch: `stop` ends the run with its state intact, `skip` learns from the rest."""
    own = load_config(
        poisoned(tmp_path),
        [
            f"training.on_bad_step={policy}",
            "training.steps=150",
            "training.eval_every=0",
            "checkpoint.every=50",
        ],
    )
    if policy == "stop":
        with pytest.raises(UserError, match="not finite") as caught:
            train_run(own, tmp_path / "run")
        for part in ("last checkpoint:", "tokens", "document", "training.on_bad_step=skip"):
            assert part in str(caught.value)
        return
    train_run(own, tmp_path / "run")
    assert "skipped (1 in all): the loss or gradient of step" in capsys.readouterr().out
    assert math.isfinite(records(tmp_path / "run", "loss")[150])


MISTAKES = {
    "a changed model": (["model.mlp_dim=96"], "model.mlp_dim was 64, is 96"),
    "a longer row than positions": (
        ["data.sequence_length=64"],
        "longer than model.max_positions=32",
    ),
    "a small vocabulary": (
        ["model.vocab_size=100"],
        "has 257 tokens but the model's vocabulary is 100",
    ),
    "a missing file": (["data.train=nothing.txt"], "nothing.txt"),
    "no source": (["data.train=[]"], "data.train names no source"),
    "a mesh of other size": (["plan.data=2"], "= 2 devices, but 8 are attached"),
    "a batch that does not divide": (
        ["training.global_batch=12", "plan.fsdp=8"],
        "nearest batches that do: 8 or 16",
    ),
    "a warmup beyond the end": (["training.schedule.warmup_steps=13"], "warmup"),
    "a misspelt key": (["training.stepz=4"], "did you mean 'steps'?"),
    "a tracker that is not installed": (["telemetry.trackers=[trackio]"], "jaxscale[trackio]"),
    "an unknown kernel": (["plan.kernels={attention: fast}", "plan.fsdp=8"], "fast"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_message_and_exit_2(
    finished: tuple[Path, Path],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the command line, against a finished run: nothing of it may be lost."""
    config, run = finished
    overrides, message = MISTAKES[name]
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")}
    arguments = [
        "jaxscale",
        "train",
        str(config),
        *overrides,
        "training.steps=13",
        "--run-dir",
        str(run),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        run_command()
    error = capsys.readouterr().err
    assert stopped.value.code == 2, error
    assert message in error
    assert "Traceback" not in error
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")} == before


@pytest.mark.slow
def test_nothing_is_kept_from_step_to_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that Python and NumPy hold, and arrays of JAX, where the run itself looks at its memory.

    Kept batches would add 16 kB a step, and there are ten between two looks. That resident memory is flat, too,
    scripts/chaos/long_run.py shows: a step more hides in what compiling has freed.
    """
    held: list[tuple[int, int]] = []

    def looked(devices: Sequence[jax.Device]) -> dict[str, int]:
        gc.collect()
        held.append((tracemalloc.get_traced_memory()[0], len(jax.live_arrays())))
        return memory_metrics(devices)

    monkeypatch.setattr(observation, "memory_metrics", looked)
    settings = ("training.steps=130", "training.global_batch=16", "telemetry.log_every=10")
    actions = ("training.eval_every=20", "checkpoint.every=20")
    own = own_model(tmp_path, write_config(tmp_path))
    tracemalloc.start()
    try:
        train_run(load_config(own, [*settings, *actions]), tmp_path / "run")
    finally:
        tracemalloc.stop()
    later = held[3:]
    sizes, arrays = zip(*later, strict=True)
    assert statistics.median(after - before for before, after in pairwise(sizes)) < 2**15, sizes
    assert arrays[-1] <= max(arrays[:2]), arrays
