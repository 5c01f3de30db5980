"""The step that a compiler is asked about is the step that trains."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from run_cases import write_config

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.job import Job, make_job
from jaxscale.training.lowering import abstract_job, lower_step
from jaxscale.training.state import TrainState, init_state, state_shardings
from jaxscale.training.step import compile_step, make_train_step

MESH = ["plan.data=2", "plan.fsdp=2", "plan.tensor=2", "plan.microbatches=2"]


def first_batch(job: Job) -> Any:
    data, training = job.config.data, job.config.training
    sharding = batch_sharding(job.placement, training.global_batch, data.sequence_length)
    return place_batch(job.batches.rows(0), sharding, training.global_batch)


def fresh_state(job: Job) -> TrainState:
    averaged = job.config.training.ema_decay is not None
    return init_state(job.model, job.optimizer, job.placement, seed=0, averaged=averaged)


@pytest.mark.parametrize("extra", [[], ["training.ema_decay=0.9", "plan.remat=dots"]])
def test_the_lowered_step_takes_a_real_run_and_trains_it_bit_for_bit(
    tmp_path: Path, extra: list[str]
) -> None:
    """Arrays of other shapes, dtypes or shardings than it was lowered for, it would refuse."""
    config = load_config(write_config(tmp_path), [*MESH, *extra])
    job = make_job(config, tmp_path / "run")
    step = make_train_step(job.model, job.placement, job.optimizer, job.schedule, config.training)
    run = compile_step(step, state_shardings(job.specs, job.placement), job.placement)
    wanted, metrics = run(fresh_state(job), first_batch(job))

    lowered = lower_step(config, job.placement.plan, jax.devices())
    found, same_metrics = lowered.compile()(fresh_state(job), first_batch(job))

    assert float(metrics["loss"]) == float(same_metrics["loss"])
    paths, same_paths = (jax.tree_util.tree_leaves_with_path(state) for state in (wanted, found))
    for (path, theirs), (same_path, ours) in zip(paths, same_paths, strict=True):
        assert path == same_path
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_lowering_reads_no_data_and_creates_no_array(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["data.train=/no/such/file.txt"])
    before = {id(array) for array in jax.live_arrays()}
    lower_step(config, Plan(fsdp=8), jax.devices())
    assert {id(array) for array in jax.live_arrays()} <= before


def test_whole_rows_have_neither_documents_nor_positions(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), [])
    whole = abstract_job(config, Plan(fsdp=8), jax.devices(), packed=False)
    batch: dict[str, Any] = dict(whole.batch)
    assert [name for name, rows in batch.items() if rows is not None] == ["tokens", "targets"]
    packed = lower_step(config, Plan(fsdp=8), jax.devices())
    text = whole.lower().as_text()
    assert packed.as_text().count("tensor<8x32xi32>") > text.count("tensor<8x32xi32>") > 0


@pytest.mark.parametrize(
    ("plan", "overrides", "message"),
    [
        (Plan(fsdp=8), ["training.global_batch=12"], "global_batch=12 does not divide"),
        (Plan(fsdp=4), [], "4 devices, but 8 are attached"),
        (Plan(tensor=8), ["model.num_kv_heads=4"], "does not divide over tensor=8"),
        (Plan(fsdp=8), ["data.sequence_length=64"], "longer than model.max_positions=32"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_is_traced(
    tmp_path: Path, plan: Plan, overrides: list[str], message: str
) -> None:
    config = load_config(write_config(tmp_path), overrides)
    with pytest.raises(UserError, match=message):
        lower_step(config, plan, jax.devices())
