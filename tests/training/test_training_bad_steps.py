"""Bad steps: told from good ones, gone back from, and the same again after a resume."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_cases import poisoned, records, saved

from jaxscale.config.loading import load_config
from jaxscale.data.loader import leave_out
from jaxscale.errors import UserError
from jaxscale.training.health.bad_steps import History, why_bad
from jaxscale.training.run import train_run

SETTINGS = (
    "training.schedule.name=constant",
    "training.eval_every=0",
    "checkpoint.every=10",
    "checkpoint.keep_last=4",
    "training.sample_tokens=0",
    "telemetry.log_every=1",
    "plan.fsdp=8",
)


def history(run: Path, step: int) -> Any:
    metadata = json.loads((run / "checkpoints" / str(step) / "metadata.json").read_text())
    return metadata["metadata"]["history"]


def bad_batch(config: Path, folder: Path) -> int:
    """The batch that ends a run whose policy is to stop."""
    settings = [*SETTINGS, "training.steps=150", "checkpoint.every=0"]
    with pytest.raises(UserError, match=r"not finite|times the median") as caught:
        train_run(load_config(config, [*settings, "training.loss_spike=1.5"]), folder)
    return int(str(caught.value).split("its batch (")[1].split(")")[0])


def test_a_bad_batch_is_gone_back_from_and_left_out(tmp_path: Path) -> None:
    """The run goes back to the checkpoint at or before the bad batch, and takes none of the batches from there to it
    again. Interrupted at several places, with a checkpoint at each, it ends bitwise the same and its log has each step
    once."""
    config = poisoned(tmp_path)
    bad = bad_batch(config, tmp_path / "stopped")
    settings = [*SETTINGS, "training.on_bad_step=rollback", "training.loss_spike=1.5"]
    steps = bad + 15
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_run(load_config(config, [*settings, f"training.steps={steps}"]), whole)
    assert history(whole, steps)["skipped_batches"] == [[bad // 10 * 10, bad + 1]]
    assert history(whole, steps)["bad_steps"] == 1
    for end in (bad, bad + 3, steps):
        train_run(load_config(config, [*settings, f"training.steps={end}"]), broken)
    assert saved(broken, steps) == saved(whole, steps)
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    logged = [line["step"] for line in lines if "loss" in line]
    assert logged == list(range(1, steps + 1))
    assert records(broken, "loss") == records(whole, "loss")


def test_a_spike_is_gone_back_from(tmp_path: Path) -> None:
    """The poisoned batch's logits count -30 times: a loss of dozens where 3 is usual, and an update that spoils the
    table. Neither is left."""
    config = poisoned(tmp_path, -30.0)
    settings = [*SETTINGS, "training.on_bad_step=rollback", "training.loss_spike=1.5"]
    train_run(load_config(config, [*settings, "training.steps=150"]), tmp_path / "run")
    assert history(tmp_path / "run", 150)["bad_steps"] == 1
    assert max(records(tmp_path / "run", "loss").values()) < 6


def test_a_run_that_only_has_bad_steps_stops_after_three_returns(tmp_path: Path) -> None:
    config = poisoned(tmp_path)
    always = config.read_text().replace("poison: 90", "poison: 101")  # 'e' is in every batch.
    config.write_text(always)
    settings = [*SETTINGS, "training.on_bad_step=rollback"]
    with pytest.raises(UserError, match="gone back to step 0 3 times"):
        train_run(load_config(config, settings), tmp_path / "run")


def test_spikes_are_not_skipped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too late to skip it"):
        load_config(poisoned(tmp_path), ["training.on_bad_step=skip", "training.loss_spike=2"])


def test_a_spike_is_a_multiple_of_the_median_of_sixteen_losses_or_more() -> None:
    """Median 2: 5.9 is under three times that, 6.1 over; fifteen losses say nothing yet."""
    before = [1.0] * 5 + [2.0] * 6 + [9.0] * 5
    assert why_bad({"finite": 1.0, "loss": 5.9}, before, 3.0) is None
    assert "over 3 times the median of 16" in str(
        why_bad({"finite": 1.0, "loss": 6.1}, before, 3.0)
    )
    assert why_bad({"finite": 1.0, "loss": 6.1}, before[:15], 3.0) is None
    assert why_bad({"finite": 1.0, "loss": 6.1}, before, None) is None
    assert why_bad({"finite": 0.0, "loss": 1.0}, [], None) == "is not finite"


def test_history_comes_back_from_a_checkpoint_exactly() -> None:
    losses = (0.1, 1 / 3, float("1e-300"))
    full = History(((3, 5), (9, 12)), 4, losses)
    assert History.of_metadata(json.loads(json.dumps({"history": full.to_metadata()}))) == full
    assert History.of_metadata({"step": 3}) == History()


def test_left_out_ranges_stay_apart_and_in_order() -> None:
    assert leave_out((), 4, 6) == ((4, 6),)
    assert leave_out(((4, 6),), 6, 9) == ((4, 9),)
    assert leave_out(((4, 6), (20, 22)), 10, 12) == ((4, 6), (10, 12), (20, 22))
    assert leave_out(((4, 6), (8, 9)), 5, 8) == ((4, 9),)
