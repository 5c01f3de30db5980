"""The meter against a clock that the test moves."""

import pytest

from jaxscale.telemetry.meter import StepMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> StepMeter:
    return StepMeter(tokens_per_step=600, clock=clock)


def test_a_window_averages_over_its_steps(clock, meter) -> None:
    for _ in range(2):
        with meter.data_wait():
            clock.now += 1
        clock.now += 4
        meter.step_done()
    with meter.checkpoint():
        clock.now += 2
    # 12 s for two steps: 2 s waiting, 2 s saving, 1200 tokens.
    assert meter.report() == {
        "tokens_per_second": 100.0,
        "step_seconds": 6.0,
        "data_wait_seconds": 1.0,
        "checkpoint_seconds": 1.0,
    }


def test_each_report_starts_over(clock, meter) -> None:
    with meter.data_wait():
        clock.now += 50
    meter.step_done()
    meter.report()
    clock.now += 3
    meter.step_done()
    assert meter.report()["step_seconds"] == 3.0


def test_evaluation_and_compilation_count_nowhere(clock, meter) -> None:
    clock.now += 1000
    meter.restart()
    clock.now += 2
    meter.step_done()
    with meter.excluded():
        clock.now += 500
    report = meter.report()
    assert report["step_seconds"] == 2.0
    assert report["tokens_per_second"] == 300.0


def test_no_steps_no_rates(clock, meter) -> None:
    clock.now += 5
    assert meter.report() == {}
