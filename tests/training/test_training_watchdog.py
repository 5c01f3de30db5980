"""Hangs and signals, in processes whose main thread is really stuck."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from jaxscale.training.health.preemption import Standing, grace_seconds, stop_on_signal
from jaxscale.training.health.watchdog import Watchdog

mode, folder = sys.argv[1], Path(sys.argv[2])
standing = Standing(saved=lambda: [2])

def stuck_here(seconds):
    print("ready", flush=True)
    time.sleep(seconds)

if mode == "signals":
    with stop_on_signal(grace_seconds()) as request:
        request.standing.done, request.standing.saved = 7, lambda: [2, 4]
        stuck_here(30)
        while True:  # A handler has run; the checkpoint that was asked for never comes.
            time.sleep(30)
watchdog = Watchdog(1.0 if mode != "peer" else 60.0, folder, standing)
watchdog.beat(5)
if mode == "paused":
    with watchdog.paused():
        stuck_here(3)
    watchdog.beat(6)
    watchdog.close()
    sys.exit(0)
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
    """Three seconds in a pause where a step has one."""
    process = start("paused", tmp_path)
    assert process.wait(25) == 0
    assert not dumps(tmp_path)


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
