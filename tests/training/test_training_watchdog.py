"""Hangs and signals, in processes whose main thread is really stuck."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dead_mounts import dead_mount

SCRIPT = """
import sys, time
from pathlib import Path
from jaxscale.training.health.preemption import Standing, grace_seconds, stop_on_signal
from jaxscale.training.health import watchdog as module
from jaxscale.training.health.watchdog import Watchdog

mode, folder = sys.argv[1], Path(sys.argv[2])
standing = Standing(saved=lambda: [2])

def stuck_here(seconds):
    print("ready", flush=True)
    time.sleep(seconds)

if mode == "signals":
    standing.done, standing.saved = 7, lambda: [2, 4]
    with stop_on_signal(grace_seconds(), standing):
        stuck_here(30)
        while True:  # A handler has run; the checkpoint that was asked for never comes.
            time.sleep(30)
if mode.startswith("start"):
    if mode.endswith("in silence"):
        module._MUTE_SECONDS = 3.0
    watchdog = Watchdog(folder, start=1.0, step=None, standing=standing)
    if mode == "start and go on":
        watchdog.starting(stored_bytes=40e6)
        stuck_here(2)
        for _ in range(4):
            watchdog.alive()
            time.sleep(0.5)
        watchdog.beat(1)
        time.sleep(2)  # Steps may take as long as they like.
        watchdog.close()
        sys.exit(0)
    stuck_here(30)
    sys.exit(0)
watchdog = Watchdog(folder, start=None, step=1.0 if mode != "peer" else 60.0, standing=standing)
watchdog.beat(5)
if mode == "longer":
    with watchdog.during("end of the checkpoint", 60e6):
        stuck_here(6)
    with watchdog.during("batch of the evaluation"):
        for _ in range(3):
            time.sleep(2)
            watchdog.alive()
    watchdog.beat(6)
    watchdog.close()
    sys.exit(0)
if mode == "evaluation":
    with watchdog.during("batch of the evaluation"):
        stuck_here(30)
stuck_here(30)
"""


def start(mode: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAXSCALE_GRACE_SECONDS": "2"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def dumps(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "health").glob("hang-*.txt"))


def test_a_hang_leaves_stacks_and_ends_with_76(tmp_path: Path) -> None:
    process = start("hang", tmp_path)
    errors = process.communicate(timeout=25)[1]
    assert process.returncode == 76
    assert "hangs: no step for" in errors
    assert "steps 3 to 5 are lost: the run goes on from the checkpoint of step 2" in errors
    assert "in stuck_here" in dumps(tmp_path)
    assert "behind step 5" in dumps(tmp_path)


def test_a_hang_that_another_process_found_ends_this_one_too(tmp_path: Path) -> None:
    """An old mark, of a start before this one, is none."""
    (tmp_path / "health").mkdir()
    (tmp_path / "health" / "hang.mark").touch()
    process = start("peer", tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(4)
    os.utime(tmp_path / "health" / "hang.mark")
    errors = process.communicate(timeout=25)[1]
    assert process.returncode == 76
    assert "another process found the run hanging" in errors
    assert "in stuck_here" in dumps(tmp_path)


def test_what_is_no_step_may_take_its_time(tmp_path: Path) -> None:
    """Where a step has one second: 6 s for a checkpoint of 60 MB, which has 4 and 60 / 20; 6 s for three batches of
    an evaluation, which have 4 each."""
    process = start("longer", tmp_path)
    assert process.wait(40) == 0
    assert not dumps(tmp_path)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("evaluation", r"hangs: no batch of the evaluation for \d+ s \(.*; 4 s for this\)"),
        ("start", r"no sign of the first step for \d+ s \(training.start_seconds=1\)"),
    ],
)
def test_what_is_no_step_hangs_too(what: str, said: str, tmp_path: Path) -> None:
    process = start(what, tmp_path)
    errors = process.communicate(timeout=25)[1]
    assert process.returncode == 76
    assert re.search(said, errors)
    assert "in stuck_here" in dumps(tmp_path)


def test_a_start_that_goes_on_is_no_hang(tmp_path: Path) -> None:
    """Where it has a second without a sign: 2 s to read 40 MB, which has 2 more, then a sign each half second."""
    process = start("start and go on", tmp_path)
    assert process.wait(40) == 0
    assert not dumps(tmp_path)


def test_a_run_directory_that_never_answers_ends_the_run_with_its_stacks(tmp_path: Path) -> None:
    """A second for the start, and 3 more (30 outside of tests): then standard error has what no file takes."""
    with dead_mount(tmp_path):
        process = start("start in silence", tmp_path)
        errors = process.communicate(timeout=25)[1]
    assert process.returncode == 1
    assert "in stuck_here" in errors


def test_a_second_sigterm_ends_at_once_and_says_what_is_lost(tmp_path: Path) -> None:
    """The same notice twice within a moment is one; the grace of 2 s is nearly over before the second comes."""
    process = start("signals", tmp_path)
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
    reader.start()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    assert process.poll() is None, lines
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75
    reader.join()
    assert "most of the 2 s of grace is over" in lines[0]
    assert "second SIGTERM: ending at once" in lines[1]
    for line in lines:
        assert "steps 5 to 7 are lost: the run goes on from the checkpoint of step 4" in line
