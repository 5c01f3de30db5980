"""Disks that lie, vanish or refuse: a run goes on from the last good state, or says what is wrong."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_cases import command, own_model, records, saved, write_config

from jaxscale.checkpoint.checkpointer import CheckpointSaveError
from jaxscale.checkpoint.integrity import find_problems
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


LONG = (*SETTINGS, "training.steps=150", "checkpoint.every=10", "telemetry.log_every=50")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The configuration of a run long enough to be hit, and what it comes to if it is not."""
    folder = tmp_path_factory.mktemp("whole")
    config = own_model(folder, write_config(folder))
    train_run(load_config(config, LONG), folder / "run")
    return config, saved(folder / "run", 150)


@contextlib.contextmanager
def behind_the_first_checkpoint(run: Path, strike: Callable[[], object]) -> Iterator[None]:
    """Strikes while steps are made, behind the first checkpoint and before the last."""
    struck: list[int] = []

    def wait() -> None:
        deadline = time.monotonic() + 100
        while not listed_steps(run / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.005)
        struck.extend(listed_steps(run / "checkpoints"))
        strike()

    striker = threading.Thread(target=wait)
    striker.start()
    yield
    striker.join()
    assert struck
    assert struck[-1] < 150


Whole = tuple[Path, dict[str, bytes]]


def test_checkpoints_that_vanish_under_a_run_cost_no_result(whole: Whole, tmp_path: Path) -> None:
    """Taken away while steps are made: the run writes the next one, or ends with a message and is started again."""
    config, run = load_config(whole[0], LONG), tmp_path / "run"
    with (
        behind_the_first_checkpoint(run, lambda: shutil.rmtree(run / "checkpoints", True)),
        contextlib.suppress(CheckpointSaveError),
    ):
        train_run(config, run)
    train_run(config, run)
    assert saved(run, 150) == whole[1]


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting takes root ({done.stderr.strip()})")


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Path]:
    """A run directory on a disk of 4 MB."""
    disk = tmp_path / "run"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk))
    yield disk
    subprocess.run(["umount", "--recursive", str(disk)], check=True)


def goes_on_as_if_nothing_had_happened(whole: Whole, run: Path) -> None:
    steps = listed_steps(run / "checkpoints")
    assert 0 < steps[-1] < 150
    for step in steps:
        assert find_problems(run / "checkpoints" / str(step)) == []
    train_run(load_config(whole[0], LONG), run)
    assert saved(run, 150) == whole[1]


@pytest.mark.slow
def test_a_disk_that_fills_up_under_a_run_keeps_its_checkpoints(
    whole: Whole, own_disk: Path
) -> None:
    """Somebody else takes what is left."""

    def fill() -> None:
        with (own_disk / "theirs").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    with (
        behind_the_first_checkpoint(own_disk, fill),
        pytest.raises((CheckpointSaveError, OSError), match="No space left"),
    ):
        train_run(load_config(whole[0], LONG), own_disk)
    (own_disk / "theirs").unlink()
    goes_on_as_if_nothing_had_happened(whole, own_disk)


@pytest.mark.slow
def test_a_disk_that_may_only_be_read_any_more_keeps_its_checkpoints(
    whole: Whole, own_disk: Path
) -> None:
    """As a disk with errors is mounted by the system; it binds root, too."""
    folder = str(own_disk / "checkpoints")

    def forbid() -> None:
        mount("--bind", folder, folder)
        mount("-o", "remount,bind,ro", folder)

    with (
        behind_the_first_checkpoint(own_disk, forbid),
        pytest.raises(CheckpointSaveError, match=r"step \d+\) is intact.*Read-only file system"),
    ):
        train_run(load_config(whole[0], LONG), own_disk)
    subprocess.run(["umount", folder], check=True)
    goes_on_as_if_nothing_had_happened(whole, own_disk)


# Bits bind root only without its capability to pass them.
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.slow
def test_a_directory_that_may_not_be_written_any_more_keeps_its_checkpoints(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    config, run = finished
    broken, folder = tmp_path / "run", tmp_path / "run/checkpoints"
    shutil.copytree(run, broken)
    folder.chmod(0o555)
    words = command(config, broken, *SETTINGS, "training.steps=16")
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("nothing is forbidden to root, and there is no setpriv to give that up")
        words = [*AS_ANYBODY, *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    assert "Permission denied" in done.stderr
    assert "step 12) is intact" in done.stderr
    assert "Traceback" not in done.stderr
    assert listed_steps(folder) == [8, 12]
    assert find_problems(folder / "12") == []


@pytest.fixture
def slow_disk(tmp_path: Path) -> dict[str, str]:
    """An environment in which checkpoints of `run` are written at 30 kB a second."""
    library = tmp_path / "slow_disk.so"
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("what slows a disk down is made by a C compiler, for Linux")
    source = str(Path(__file__).with_name("slow_disk.c"))
    words = [compiler, "-shared", "-fPIC", "-o", str(library), source, "-ldl", "-lpthread"]
    subprocess.run(words, check=True)
    folder = str(tmp_path / "run/checkpoints")
    return {"LD_PRELOAD": str(library), "SLOW_DISK": folder, "SLOW_DISK_BYTES": "30000"}


@pytest.mark.slow
def test_steps_go_on_while_a_slow_disk_takes_a_checkpoint(
    finished: tuple[Path, Path], slow_disk: dict[str, str], tmp_path: Path
) -> None:
    """101 kB, which take it over 3 s; 40 steps take a fraction of one, and what they change is not in that checkpoint.
    Where the next one is due, training waits for the one before. With a grace of 2 s it says that this is too short."""
    run, fast = tmp_path / "run", tmp_path / "fast"
    settings = (*LONG, "checkpoint.every=100", "telemetry.log_every=1")
    subprocess.run(command(finished[0], fast, *settings), check=True, stdout=subprocess.DEVNULL)
    words = command(finished[0], run, *settings)
    environment = {**os.environ, **slow_disk, "JAXSCALE_GRACE_SECONDS": "2"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoints/100").exists() and process.poll() is None:
            time.sleep(0.01)
        made = max(records(run, "loss"))
        output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert made >= 140
    for step in (100, 150):
        assert saved(run, step) == saved(fast, step)
    took = re.search(r"warning: a checkpoint took ([\d.]+) s, and a preemption leaves 2 s", output)
    assert took, output
    assert float(took[1]) > 3
