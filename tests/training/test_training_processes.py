"""Runs of two processes: one is asked to stop, or stops answering."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_cases import own_model, records, saved, write_config

CHILD = Path(__file__).with_name("process_child.py")
SETTINGS = (
    "training.steps=150",
    "training.schedule.name=constant",
    "training.eval_every=0",
    "training.sample_tokens=0",
    "checkpoint.every=100",
    "plan.fsdp=4",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def start(count: int, config: Path, run: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """`count` processes with four devices in all."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(4 // count)}
    common = [str(count), str(free_port()), str(config), str(run), *SETTINGS, *overrides]
    return [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(process), *common],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    outputs = [process.communicate(timeout=250)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def wait_for_steps(run: Path, processes: list[subprocess.Popen[str]], count: int) -> None:
    deadline = time.monotonic() + 200
    log = run / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_is_one_checkpoint_of_both(tmp_path: Path) -> None:
    """The second process alone is asked: both end with 75 behind the same step, and go on to the same end."""
    config, run = own_model(tmp_path, write_config(tmp_path)), tmp_path / "run"
    assert ended(start(2, config, tmp_path / "whole"))[0] == [0, 0]
    processes = start(2, config, run)
    wait_for_steps(run, processes, 5)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = ended(processes)
    assert codes == [75, 75], outputs
    (stopped,) = (int(path.name) for path in (run / "checkpoints").iterdir())
    assert stopped < 100
    assert stopped == max(records(run, "loss"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(records(run, "loss")), "one process writes"
    codes, outputs = ended(start(2, config, run))
    assert codes == [0, 0], outputs
    assert saved(run, 150) == saved(tmp_path / "whole", 150)
    assert records(run, "loss") == records(tmp_path / "whole", "loss")


@pytest.mark.slow
def test_a_process_that_stops_answering_is_a_hang_of_the_others(tmp_path: Path) -> None:
    config, run = own_model(tmp_path, write_config(tmp_path)), tmp_path / "run"
    processes = start(2, config, run, "training.hang_seconds=4", "training.steps=100000")
    wait_for_steps(run, processes, 5)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        # The limit, two seconds between looks, ten for others to write their stacks, and a busy machine.
        processes[0].wait(4 + 2 + 10 + 30)
    finally:
        processes[1].kill()
    codes, outputs = ended(processes)
    assert codes == [76, -signal.SIGKILL], outputs
    assert "process 0 hangs: no step for" in outputs[0]
    (stacks,) = (run / "health").glob("hang-*-process-0.txt")
    assert "run_loop" in stacks.read_text()
