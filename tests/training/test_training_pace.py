"""A slow process among several is named, though all have the same step times."""

import os
import signal
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from run_cases import own_model, records, write_config
from test_training_processes import ended, start

from jaxscale.training.health.pace import Pace, apart, products_for
from jaxscale.training.health.stragglers import slow_devices, slow_devices_message


def test_looks_become_rarer_and_never_stop() -> None:
    """In a run that exchanges twice a second: five in the first five seconds, then one a minute."""
    at, looks = 2, []
    while at < 10_000:
        looks.append(at)
        at += apart(at)
    assert len([one for one in looks if one <= 10]) == 5
    assert {b - a for a, b in zip(looks[-20:], looks[-19:], strict=False)} == {120}


@pytest.mark.parametrize(
    ("seconds", "products"),
    # What is asked for takes some 20 ms; the first look did two products.
    [(0.02, 4), (0.005, 8), (2e-4, 256), (1e-9, 1 << 14), (5.0, 4)],
)
def test_work_is_chosen_by_what_the_first_look_took(seconds: float, products: int) -> None:
    assert products_for(seconds) == products


def test_the_median_of_some_looks_counts() -> None:
    """The first look chooses the work. Exchanges without one bring zeros, and one slow look, change nothing."""
    pace, behind = Pace(), jnp.zeros(())
    assert pace.look(behind) == 0
    assert pace.look(behind) > 0
    pace.learn([0.01, 0.02])
    for _ in range(3):
        pace.learn([0.02, 0.04])
        pace.learn([0.0, 0.0])
    assert pace.medians() == ()
    pace.learn([0.02, 0.5])
    assert pace.medians() == pytest.approx((0.02, 0.04))


def test_who_is_slow() -> None:
    assert slow_devices(()) == []
    assert slow_devices((0.02, 0.029)) == []
    assert slow_devices((0.02, 0.031)) == [1]  # Of two, the other one is the usual one.
    assert slow_devices((0.02, 0.021, 0.05, 0.019)) == [2]
    message = slow_devices_message((0.02, 0.06), ("one", "two"))
    assert message is not None
    assert "process 1 (two) 3.0 times as long" in message
    assert slow_devices_message((0.02, 0.02), ("one", "two")) is None


@pytest.mark.slow
def test_a_process_that_is_not_let_run_is_named(tmp_path: Path) -> None:
    """The second of two is stopped three quarters of the time. The steps of both are slow; only its devices are."""
    config, run = own_model(tmp_path, write_config(tmp_path)), tmp_path / "run"
    processes = start(2, config, run, "training.steps=1000000", "training.hang_seconds=null")
    over = threading.Event()

    def hold_back() -> None:
        while not over.wait(0.02):
            os.kill(processes[1].pid, signal.SIGSTOP)
            time.sleep(0.06)
            os.kill(processes[1].pid, signal.SIGCONT)

    deadline, log = time.monotonic() + 200, run / "metrics.jsonl"
    while not log.exists():
        assert all(process.poll() is None for process in processes), ended(processes)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    thread = threading.Thread(target=hold_back)
    thread.start()
    try:
        while not (found := records(run, "slowest_device_ratio")) or max(found.values()) < 2:
            assert all(process.poll() is None for process in processes), ended(processes)
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
    finally:
        over.set()
        thread.join()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes, outputs = ended(processes)
    assert codes == [75, 75], outputs
    step = max(found, key=lambda step: found[step])
    assert records(run, "slowest_device_process")[step] == 1
    assert "slow devices: for the same products of matrices, done alone, process 1 (" in outputs[0]
