"""Every optimizer, policy and option through whole runs on a mesh: it learns, and a resumed run is the whole run."""

from pathlib import Path

import pytest
from run_cases import own_model, records, stopped_at, write_config

from jaxscale.config.loading import load_config
from jaxscale.training.run import train_run

MESH = ("plan.data=2", "plan.fsdp=2", "plan.tensor=2")
BASE = (*MESH, "training.schedule.name=constant", "training.sample_tokens=0")
RUNS = {
    "muon, EMA, bf16, dots": (
        "training.optimizer.name=muon",
        "training.ema_decay=0.5",
        "plan.precision=bfloat16",
        "plan.remat=dots",
    ),
    "adafactor, microbatches, minimal": (
        "training.optimizer.name=adafactor",
        "training.optimizer.learning_rate=0.1",
        "plan.microbatches=2",
        "plan.remat=minimal",
    ),
    "lion, z-loss, smoothing, full": (
        "training.optimizer.name=lion",
        "training.optimizer.learning_rate=0.003",
        "training.z_loss=0.001",
        "training.label_smoothing=0.1",
        "plan.remat=full",
    ),
    "adamw, offload, unclipped": ("plan.remat=offload", "training.clip_norm=null"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_with_any_feature_is_the_whole_run(tmp_path: Path, name: str) -> None:
    """Stopped at a checkpoint and started again: equal only if all that optimizer and average keep is restored."""
    config = write_config(tmp_path)
    settings = [*BASE, *RUNS[name]]
    train_run(load_config(config, [*settings, "training.steps=12"]), tmp_path / "whole")
    run = stopped_at(tmp_path / "whole", 8, tmp_path / "run")
    assert max(records(run, "loss")) == 8
    train_run(load_config(config, [*settings, "training.steps=12"]), run)
    losses = records(tmp_path / "whole", "loss")
    assert losses[12] < losses[1] - 0.5
    assert records(run, "loss") == losses
    assert records(run, "eval_loss")[12] == records(tmp_path / "whole", "eval_loss")[12]


@pytest.mark.slow
def test_a_profiled_run_writes_a_trace_and_tensorboard_events(tmp_path: Path) -> None:
    settings = ["telemetry.profile={start: 3, steps: 2}", "telemetry.trackers=[tensorboard]"]
    config = own_model(tmp_path, write_config(tmp_path))
    train_run(load_config(config, [*settings, "training.steps=6"]), tmp_path / "run")
    assert len(list((tmp_path / "run/profile").rglob("*.xplane.pb"))) == 1
    assert list((tmp_path / "run/tensorboard").rglob("*tfevents*"))
