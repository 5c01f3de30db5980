"""Disks that lie, vanish or refuse: a run goes on from the last good state, or says what is wrong."""

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from run_cases import own_model, saved, write_config

from jaxscale.checkpoint.checkpointer import CheckpointSaveError
from jaxscale.checkpoint.layout import listed_steps
from jaxscale.config.loading import load_config
from jaxscale.errors import UserError
from jaxscale.training.job import make_job
from jaxscale.training.resume import open_checkpoints, start_or_resume
from jaxscale.training.run import train_run

SETTINGS = ("training.schedule.name=constant", "training.eval_every=0", "training.sample_tokens=0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(configuration, run directory), with checkpoints of steps 8 and 12."""
    folder = tmp_path_factory.mktemp("storage")
    config = own_model(folder, write_config(folder))
    train_run(load_config(config, [*SETTINGS]), folder / "run")
    return config, folder / "run"


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_passed_over(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """One bit in the middle of each file in turn: the run goes on from the checkpoint before, and says which file."""
    config, run = finished
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    job = make_job(load_config(config, [*SETTINGS]), broken)
    files = sorted(path for path in (broken / "checkpoints/12").rglob("*") if path.is_file())
    assert len(files) >= 4
    for file in files:
        good = file.read_bytes()
        file.write_bytes(_flipped(good))
        warnings: list[str] = []
        with open_checkpoints(job) as checkpoints:
            assert start_or_resume(job, checkpoints, warnings.append).step == 8, file
        assert file.relative_to(broken / "checkpoints/12").as_posix() in warnings[0]
        file.write_bytes(good)
    with open_checkpoints(job) as checkpoints:
        assert start_or_resume(job, checkpoints, pytest.fail).step == 12


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def test_a_token_store_that_lost_the_end_of_any_file_is_named(tmp_path: Path) -> None:
    """Half of each file of the store in turn, but of the borders of documents, which training does not read."""
    config = own_model(tmp_path, write_config(tmp_path))
    train_run(load_config(config, [*SETTINGS, "training.steps=1"]), tmp_path / "first")
    (store,) = tmp_path.glob("stores/*/train")
    files = sorted(path for path in store.rglob("*") if path.is_file())
    files.remove(store / "document_offsets/c/0")
    settings = [*SETTINGS, f"data.train={store}", "data.eval_fraction=0", "training.steps=160"]
    assert len(files) >= 4
    for index, file in enumerate(files):
        good = file.read_bytes()
        file.write_bytes(good[: len(good) // 2])
        with pytest.raises(UserError, match=str(store)):
            train_run(load_config(config, settings), tmp_path / f"run{index}")
        file.write_bytes(good)


def test_a_run_whose_checkpoints_are_gone_says_so_and_starts_again(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    config, run = finished
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    shutil.rmtree(broken / "checkpoints")
    said: list[str] = []
    train_run(load_config(config, [*SETTINGS]), broken, said.append)
    assert any("has made 12 steps and has no checkpoint" in line for line in said)
    assert saved(broken, 12) == saved(run, 12)


def test_checkpoints_that_vanish_under_a_run_cost_no_result(tmp_path: Path) -> None:
    """Taken away while steps are made: the run writes the next one, or ends with a message and is started again."""
    config = own_model(tmp_path, write_config(tmp_path))
    settings = [*SETTINGS, "training.steps=150", "checkpoint.every=10", "telemetry.log_every=50"]
    train_run(load_config(config, settings), tmp_path / "whole")
    run = tmp_path / "run"
    vanished = threading.Event()
    thief = threading.Thread(target=_take_away, args=(run / "checkpoints", vanished))
    thief.start()
    with contextlib.suppress(CheckpointSaveError):
        train_run(load_config(config, settings), run)
    train_run(load_config(config, settings), run)
    thief.join()
    assert vanished.is_set()
    assert saved(run, 150) == saved(tmp_path / "whole", 150)


def _take_away(folder: Path, vanished: threading.Event) -> None:
    deadline = time.monotonic() + 100
    while not listed_steps(folder) and time.monotonic() < deadline:
        time.sleep(0.005)
    steps = listed_steps(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if steps and steps[0] < 150:
        vanished.set()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_that_may_not_be_written_any_more_keeps_its_checkpoints(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    config, run = finished
    broken, folder = tmp_path / "run", tmp_path / "run/checkpoints"
    shutil.copytree(run, broken)
    folder.chmod(0o555)
    settings = [*SETTINGS, "training.steps=16"]
    with pytest.raises(UserError, match=r"step 12.* is intact"):
        train_run(load_config(config, settings), broken)
    folder.chmod(0o755)
    train_run(load_config(config, settings), broken)
    train_run(load_config(config, settings), tmp_path / "whole")
    assert saved(broken, 16) == saved(tmp_path / "whole", 16)
