"""The step is compiled once, beside what a start does otherwise, and is the step that was compiled behind it before."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from run_cases import command, own_model, write_config

from jaxscale.config.loading import load_config
from jaxscale.errors import UserError
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.compile_ahead import TrainStep
from jaxscale.training.job import Job, make_job
from jaxscale.training.run import train_run
from jaxscale.training.state import TrainState, init_state, state_shardings
from jaxscale.training.step import compile_step, make_train_step

QUIET = ("data.eval_fraction=0", "training.sample_tokens=0", "model.num_layers=1")
MESH = (
    "plan.data=2",
    "plan.fsdp=2",
    "plan.tensor=2",
    "model.num_layers=1",
    "training.ema_decay=0.9",
)
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled() -> Iterator[list[tuple[str, str]]]:
    """(program, thread) of everything that is compiled."""
    found: list[tuple[str, str]] = []

    def listen(event: str, _seconds: float, fun_name: str = "", **_: Any) -> None:
        if event == COMPILED:
            found.append((fun_name, threading.current_thread().name))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def steps_of(compiled: list[tuple[str, str]]) -> list[str]:
    """Names of the threads that have compiled a train step."""
    return [thread for name, thread in compiled if name == "jit(step)"]


def job_of(folder: Path, *overrides: str) -> Job:
    return make_job(load_config(write_config(folder), [*MESH, *overrides]), folder / "run")


def arguments(job: Job) -> tuple[TrainState, Any]:
    averaged = job.config.training.ema_decay is not None
    state = init_state(job.model, job.optimizer, job.placement, seed=0, averaged=averaged)
    rows, length = job.config.training.global_batch, job.config.data.sequence_length
    sharding = batch_sharding(job.placement, rows, length)
    return state, place_batch(job.batches.rows(0), sharding, rows)


@pytest.mark.slow
def test_what_was_compiled_ahead_is_called_as_it_is_and_computes_the_same_bits(
    tmp_path: Path, compiled: list[tuple[str, str]]
) -> None:
    job = job_of(tmp_path)
    step = TrainStep(job)
    told: list[list[str]] = []
    step.tell = lambda choices: told.append([choice.op for choice in choices])
    step.compile_ahead()
    state, metrics = step(*arguments(job))
    state, metrics = step(state, arguments(job)[1])
    assert [name.startswith("compile") for name in steps_of(compiled)] == [True]
    assert len(told) == 1
    assert "attention" in told[0]

    plain = make_train_step(
        job.model, job.placement, job.optimizer, job.schedule, job.config.training
    )
    run = compile_step(plain, state_shardings(job.specs, job.placement), job.placement)
    wanted, wanted_metrics = run(*arguments(job))
    wanted, wanted_metrics = run(wanted, arguments(job)[1])
    for ours, theirs in zip(
        jax.tree.leaves((state, metrics)), jax.tree.leaves((wanted, wanted_metrics)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.slow
def test_a_run_and_its_restart_compile_once_each_and_one_that_is_done_not_at_all(
    tmp_path: Path, compiled: list[tuple[str, str]]
) -> None:
    config = load_config(write_config(tmp_path), [*QUIET, "training.steps=4"])
    said: list[str] = []
    for total, compilations in ((2, 1), (4, 1), (4, 0)):
        compiled.clear()
        part = config.model_copy(
            update={"training": config.training.model_copy(update={"steps": total})}
        )
        assert train_run(part, tmp_path / "run", said.append).steps == total
        assert [name.startswith("compile") for name in steps_of(compiled)] == [True] * compilations


def test_what_the_compiler_refuses_is_raised_where_the_step_is_called(tmp_path: Path) -> None:
    """A kernel that was asked for by name and declines on this platform; the chosen ones are told otherwise."""
    job = job_of(tmp_path, "plan.kernels={attention: pallas_tpu_splash}")
    step = TrainStep(job)
    step.compile_ahead()
    with pytest.raises(UserError, match="pallas_tpu_splash"):
        step(*arguments(job))


@pytest.mark.slow
def test_nothing_that_replaces_imports_is_imported_beside_the_compiler(tmp_path: Path) -> None:
    """While Grain is imported, `builtins.__import__` is another function for every thread: once in many starts the
    compiler's got a lazy module for a function. So it is there when the model is traced."""
    config = own_model(tmp_path, write_config(tmp_path))
    model = tmp_path / "bigram.py"
    traced = "        print('grain is imported:', 'grain' in sys.modules)\n        logits ="
    model.write_text("import sys\n" + model.read_text().replace("        logits =", traced, 1))
    words = command(config, tmp_path / "run", *QUIET[:2], "training.steps=1")
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    seen = [line for line in done.stdout.splitlines() if line.startswith("grain is imported")]
    # The model is traced for its description first, before anything is compiled.
    assert seen[-1] == "grain is imported: True"
    assert "False" not in "".join(seen[1:]), seen
