"""Storage that stands still before the first step, inside an evaluation, and inside a checkpoint: a pipe that nobody
writes into."""

import os
from pathlib import Path

import pytest
from dead_mounts import dead_mount
from run_cases import own_model, start, write_config

from jaxscale.config.loading import load_config
from jaxscale.training.run import train_run

# A step has a second, an evaluation's batch and a checkpoint have four.
SETTINGS = (
    "training.schedule.name=constant",
    "training.sample_tokens=0",
    "training.hang_seconds=1",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that is at step 4 in `run`, with its tokens prepared."""
    folder = tmp_path_factory.mktemp("hangs")
    config = own_model(folder, write_config(folder))
    train_run(load_config(config, [*SETTINGS, "training.steps=4"]), folder / "run")
    return config


def stands_still(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def ended(config: Path, *overrides: str) -> tuple[int, str, str]:
    """Status, output and stacks of a run that goes on."""
    run = config.parent / "run"
    process = start(config, run, *SETTINGS, *overrides)
    output = process.communicate(timeout=120)[0]
    stacks = [path.read_text() for path in (run / "health").glob("hang-*.txt")]
    return process.returncode, output, "".join(stacks)


# In which a process has to import what it needs.
STARTS = ("training.hang_seconds=null", "training.start_seconds=12")


@pytest.mark.slow
def test_checkpoints_that_never_answer_are_a_hang(config: Path) -> None:
    with dead_mount(config.parent / "run/checkpoints"):
        status, output, stacks = ended(config, *STARTS)
    assert status == 76, output
    assert "no sign of the first step for" in output
    assert "what is lost is not known: the checkpoints do not answer" in output
    assert "in listed_steps" in stacks


@pytest.mark.slow
def test_data_that_never_come_are_a_hang(config: Path) -> None:
    """The tokens of the first batch stand still."""
    (tokens,) = config.parent.glob("stores/*/train/tokens/c/0")
    aside = tokens.rename(tokens.with_name("aside"))
    stands_still(tokens)
    status, output, stacks = ended(config, *STARTS)
    aside.rename(tokens)
    assert status == 76, output
    assert "no sign of the first step for" in output
    assert "nothing is lost: the run goes on from the checkpoint of step 4" in output
    assert "in run_loop" in stacks


@pytest.mark.slow
def test_a_checkpoint_that_never_ends_is_a_hang(config: Path) -> None:
    """Of the save of step 8, what follows its publication stands still; the save of step 12 waits for it."""
    stands_still(config.parent / "run/checkpoints/1/metadata.json")
    status, output, stacks = ended(config, "training.eval_every=0")
    assert status == 76, output
    assert "no end of the checkpoint for" in output
    assert "the run goes on from the checkpoint of step 8" in output
    assert "in _prune" in stacks


@pytest.mark.slow
def test_an_evaluation_that_never_ends_is_a_hang(config: Path) -> None:
    """The tokens of the text that was held out stand still."""
    (tokens,) = config.parent.glob("stores/*/eval/tokens/c/0")
    stands_still(tokens)
    status, output, stacks = ended(config, "checkpoint.every=0")
    assert status == 76, output
    assert "no batch of the evaluation for" in output
    assert "in evaluate" in stacks
