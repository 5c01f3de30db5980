"""Runs that wake up on another number of devices."""

from pathlib import Path

import numpy as np
import pytest
from run_cases import records, start, write_config

from jaxscale.cli.auto_plan import planner
from jaxscale.config.loading import load_config
from jaxscale.training.run import train_run

SETTINGS = (
    "training.global_batch=24",
    "training.schedule.name=constant",
    "training.eval_every=0",
    "training.sample_tokens=0",
)


def on_eight(config: Path, run: Path, steps: int) -> list[str]:
    """Here, where there are eight devices; what was said of the plan."""
    said: list[str] = []
    settings = load_config(config, [*SETTINGS, f"training.steps={steps}"])
    train_run(settings, run, choose=planner(run, said.append))
    return said


def on_fewer(config: Path, run: Path, devices: int, *overrides: str) -> tuple[int, str]:
    process = start(config, run, *SETTINGS, *overrides, devices=devices)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.slow
def test_a_run_shrinks_and_grows_and_keeps_its_batches(tmp_path: Path) -> None:
    """8, 6, 8 devices, laid out by the planner each time: losses are those of 8 devices throughout, within 1e-5 (sums
    in another order), where another batch would differ by percents. 5 devices, which the batch does not divide over,
    are refused with numbers that work; so is a plan by hand of another size."""
    config, run, whole = write_config(tmp_path), tmp_path / "run", tmp_path / "whole"
    on_eight(config, whole, 9)
    on_eight(config, run, 3)
    code, output = on_fewer(config, run, 5, "training.steps=6")
    assert code == 2, output
    assert "does not divide over 5 devices" in output
    assert "start the run on 4 or 6 of them" in output
    code, output = on_fewer(config, run, 6, "training.steps=6", "plan.fsdp=8")
    assert code == 2, output
    assert "= 8 devices, but 6 are attached" in output
    assert "plan=auto" in output
    code, output = on_fewer(config, run, 6, "training.steps=6")
    assert code == 0, output
    assert "on 6 cpu device(s)" in output
    assert "laid over 6 devices" in on_eight(config, run, 9)[0]
    expected, found = records(whole, "loss"), records(run, "loss")
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
