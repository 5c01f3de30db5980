"""What a run directory says about its run, at every stage of its life."""

import json
import os
import signal
import subprocess
import sys

import pytest

from jaxscale.telemetry.metrics import MetricsLog
from jaxscale.telemetry.status import plan_words, run_status, status_data

NOW = 10_000.0
ELSEWHERE = {"pid": 1, "machine": "another/1", "started": 1}
# Writes a diary as a run does, says so, and waits to be killed.
CHILD = """
import sys, time
from pathlib import Path
from jaxscale.telemetry.journal import Journal
journal = Journal(Path(sys.argv[1]), planned_steps=10)
journal.resume(0)
journal.step(3)
print("told", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    """The directory of a run to which lines can be added; nothing in it is newer than `NOW`."""
    path = tmp_path / "run"
    path.mkdir()
    return path


def tell(run, *events) -> None:
    with (run / "events.jsonl").open("a") as file:
        for time, kind, step, facts in events:
            line = {"time": time, "kind": kind, "step": step, "seconds": {}, "doing": "step"}
            file.write(json.dumps(line | facts) + "\n")


def log(run, *records, at=NOW - 1) -> None:
    metrics = MetricsLog(run / "metrics.jsonl")
    for record in records:
        metrics.write(record)
    metrics.close()
    os.utime(run / "metrics.jsonl", (at, at))


def going(run, last=NOW - 1) -> None:
    """A run of 100 steps that makes one in 2 s (pauses and all), somewhere else, and last spoke at `last`."""
    tell(
        run,
        (last - 120, "start", 0, {"planned_steps": 100, "born": last - 130, **ELSEWHERE}),
        (last - 110, "resume", 0, {}),
        (last - 100, "progress", 1, {}),
        (last, "progress", 51, {}),
    )
    log(run, {"step": 50, "loss": 3.0, "mfu": 0.4}, {"step": 50, "eval_loss": 3.5}, at=last)


def test_a_run_that_goes_on(run) -> None:
    going(run)
    for name in ("20", "40", "60.1.saving", "100.deleting", "notes"):
        (run / "checkpoints" / name).mkdir(parents=True)
        os.utime(run / "checkpoints" / name, (NOW - 30, NOW - 30))
    found = run_status(run, now=NOW)
    assert (found.state, found.step, found.planned_steps) == ("running", 51, 100)
    assert (found.latest["loss"], found.latest["eval_loss"]) == (3.0, 3.5)
    assert found.age == 1
    assert found.seconds_left == 49 * 2  # 50 steps in 100 s, 49 to go.
    data = status_data(found, NOW)
    assert data["expected_end"] == NOW + 98
    assert data["checkpoint"] == {"step": 40, "age_seconds": 30}
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    ("silence", "state"),
    # The longest pause of this process was 100 s, of which a hang is longer than three.
    [(10, "running"), (290, "running"), (310, "hung?")],
)
def test_silence_is_a_hang_when_it_is_longer_than_before(run, silence, state) -> None:
    going(run, last=NOW - silence)
    assert run_status(run, now=NOW).state == state


def test_a_process_that_compiles_is_given_time(run) -> None:
    going(run, last=NOW - 3000)
    tell(run, (NOW - 1000, "start", 0, {"planned_steps": 100, **ELSEWHERE}))
    tell(run, (NOW - 900, "resume", 40, {}))
    found = run_status(run, now=NOW)
    assert (found.state, found.seconds_left) == ("starting", None)
    assert run_status(run, now=NOW + 1000).state == "hung?"


@pytest.mark.parametrize(
    ("facts", "state", "why"),
    [
        ({"status": "finished"}, "finished", "last step"),
        ({"status": "preempted"}, "preempted", "goes on"),
        ({"status": "failed", "reason": "OSError: gone"}, "failed", "OSError: gone"),
        ({}, "failed", "no reason"),
    ],
)
def test_the_last_word_counts_however_long_ago(run, facts, state, why) -> None:
    going(run, last=NOW - 5000)
    tell(run, (NOW - 4000, "end", 100, facts))
    found = run_status(run, now=NOW)
    assert found.state == state
    assert why in found.why
    assert found.seconds_left is None


def test_a_new_process_takes_the_last_word_back(run) -> None:
    going(run)
    tell(run, (NOW - 1, "end", 51, {"status": "preempted"}))
    tell(run, (NOW, "start", 0, {"planned_steps": 200, **ELSEWHERE}))
    found = run_status(run, now=NOW)
    assert (found.state, found.planned_steps) == ("starting", 200)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_is_told_from_one_that_is_stopped(run, number) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, run], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"told\n"
        told = (run / "events.jsonl").stat().st_mtime
        assert run_status(run, now=told + 1).state == "running"
        child.send_signal(number)
        if number == signal.SIGKILL:
            # Ended but not yet asked about by its parent, as in a container without an init.
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert run_status(run, now=told + 1).state == "dead"
            child.wait()
            assert run_status(run, now=told + 1).state == "dead"
        else:
            found = run_status(run, now=told + 600)
            assert found.state == "hung?"
            assert "its process lives" in found.why
            child.kill()


def test_lines_half_written_are_not_read_yet(run) -> None:
    going(run)
    for name, torn in (("metrics.jsonl", '{"step": 60, "lo'), ("events.jsonl", '{"time": 10')):
        with (run / name).open("a") as file:
            file.write(torn)
    found = run_status(run, now=NOW)
    assert (found.step, found.latest["loss"]) == (51, 3.0)


def test_a_run_without_a_diary(run) -> None:
    (run / "config.yaml").write_text("training: {steps: 100}")
    log(run, {"step": 10, "loss": 2.0, "step_seconds": 3.0}, at=NOW - 5)
    found = run_status(run, now=NOW)
    assert (found.state, found.goodput, found.seconds_left) == ("running", None, 90 * 3.0)
    assert run_status(run, now=NOW + 5000).state == "unknown"
    (run / "summary.json").write_text('{"status": "finished"}')
    assert run_status(run, now=NOW + 5000).state == "finished"


def test_an_empty_directory(run) -> None:
    found = run_status(run, now=NOW)
    assert (found.state, found.step, found.age, found.latest) == ("unknown", 0, None, {})


def test_a_loss_that_is_not_finite_is_not_shown_as_the_one_before(run) -> None:
    log(run, {"step": 10, "loss": 2.0, "mfu": 0.5}, {"step": 20, "loss": float("nan")})
    found = run_status(run, now=NOW)
    assert "loss" not in found.latest
    assert found.latest["mfu"] == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("data: [", ""),
        ("- 1", ""),
        ("data: 1\nfsdp: 1\nmicrobatches: 1", "one device"),
        ("tensor: 2\nfsdp: 16\nmicrobatches: 4\nremat: full", "fsdp 16, tensor 2, 4 microbatches"),
        ("fsdp: lots\ntensor: 2", "tensor 2"),
    ],
)
def test_a_plan_in_a_line(text, words) -> None:
    assert plan_words(text) == words


def test_stacks_of_the_last_hang_are_named(run) -> None:
    (run / "health").mkdir()
    for stamp in ("20260101T000000", "20260102T000000"):
        (run / "health" / f"hang-{stamp}-process-0.txt").touch()
    assert run_status(run, now=NOW).stacks.name == "hang-20260102T000000-process-0.txt"
