"""A run that names no mesh axis is laid out by the planner, keeps its plan, and can be held against it."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import yaml
from cli_cases import call, succeed, write_config
from rich.console import Console

from jaxscale.cli.attached import cluster_here
from jaxscale.cli.auto_plan import planner
from jaxscale.cli.render.measured import measured_data, print_measured
from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.config.text import to_yaml
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.planner.measured.calibration_file import read_calibration
from jaxscale.training.job import Chosen

SHORT = ("training.steps=4", "telemetry.log_every=1", "training.eval_batches=1")
OWN_MODEL = """
import jax.numpy as jnp
from flax import nnx

class Bigram(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Param(jnp.zeros((64, 64)), axes=("vocab", "embed"))

def build(rngs):
    return Bigram(rngs)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose plan is left open."""
    path = write_config(tmp_path_factory.mktemp("auto"))
    path.write_text(path.read_text().replace("plan: {data: 8}", "plan: auto"))
    return path


@pytest.fixture(scope="module")
def planned(config: Path) -> tuple[Path, str]:
    """The directory of a finished run, and what it said."""
    run = config.parent / "run"
    return run, succeed("train", config, *SHORT, "--run-dir", run)


@pytest.fixture
def choose(config: Path, tmp_path: Path) -> Callable[..., tuple[Chosen, str]]:
    """The plan for a run in a directory, with overrides, and what the user hears of it."""

    def chosen(*overrides: str, directory: Path = tmp_path) -> tuple[Chosen, str]:
        settings, said = load_config(config, overrides), []
        found = planner(directory, said.append)(settings, blueprint(model_builder(settings.model)))
        return found, "\n".join(said)

    return chosen


def test_the_plan_and_its_prediction_are_in_the_run(planned: tuple[Path, str]) -> None:
    run, said = planned
    plan = Plan.model_validate(yaml.safe_load((run / "plan.yaml").read_text()))
    prediction = json.loads((run / "prediction.json").read_text())
    assert plan.num_devices == 8
    assert prediction["cluster"] == "cpu:8"
    assert prediction["chosen_by"] == "the planner"
    assert prediction["tokens_per_step"] == 8 * 32
    assert f"plan: {prediction['plan']} on cpu:8" in said
    # No speed is claimed for CPU devices.
    assert "a step" not in said


def test_the_report_and_the_command_hold_the_run_against_it(
    planned: tuple[Path, str], tmp_path: Path
) -> None:
    run, _ = planned
    prediction = json.loads((run / "prediction.json").read_text())
    page, out = (run / "report.html").read_text(), StringIO()
    assert "Predicted beside measured" in page
    found = print_measured(run, tmp_path / "mine.yaml", console=Console(file=out, width=100))
    # Four windows of a step: compilation and the one after it do not count.
    assert found.measured.num_steps == 2
    assert measured_data(found)["predicted"]["step_seconds"] == prediction["step_seconds"]
    assert "no speed is claimed" in out.getvalue()
    entry = read_calibration(tmp_path / "mine.yaml").chips["CPU device"]
    assert f"{entry.products:.3f} (median of 1 runs)" in out.getvalue()


def test_a_run_that_goes_on_keeps_its_plan(planned: tuple[Path, str], config: Path) -> None:
    """The same 8 devices over another batch would be laid out anew; the run is not."""
    run, _ = planned
    other = run.parent / "copy"
    shutil.copytree(run, other)
    before = Plan(data=4, fsdp=2, remat="full")
    (other / "plan.yaml").write_text(to_yaml(before))
    said = succeed("train", config, *SHORT, "training.steps=5", "--run-dir", other)
    assert "data=4 fsdp=2, 1 microbatch, remat=full, as the run has it" in said
    assert "resuming behind step 4" in said
    assert Plan.model_validate(yaml.safe_load((other / "plan.yaml").read_text())) == before
    prediction = json.loads((other / "prediction.json").read_text())
    assert (prediction["chosen_by"], prediction["since_step"]) == ("the run so far", 4)


def lay_out(directory: Path, plan: Plan) -> Path:
    """A run directory that has a checkpoint of step 4 by its name."""
    (directory / "checkpoints" / "4").mkdir(parents=True)
    (directory / "plan.yaml").write_text(to_yaml(plan))
    return directory


def test_other_devices_get_another_plan_for_the_same_batch(choose, tmp_path: Path) -> None:
    found, said = choose(directory=lay_out(tmp_path, Plan(fsdp=4, remat="full")))
    assert "was laid over 4 devices (fsdp=4, 1 microbatch, remat=full), now there are 8" in said
    assert "its batch of 8 sequences stays" in said
    assert (found.plan.num_devices, found.plan.remat) == (8, "none")
    assert found.prediction is not None
    assert found.prediction["since_step"] == 4


def test_keys_that_the_configuration_sets_now_count(choose, tmp_path: Path) -> None:
    directory = lay_out(tmp_path, Plan(data=2, fsdp=4, remat="full", precision="bfloat16"))
    found, _ = choose("plan.remat=dots", directory=directory)
    assert found.plan == Plan(data=2, fsdp=4, remat="dots")


def test_a_kept_plan_that_the_batch_outgrew_is_replaced(choose, tmp_path: Path) -> None:
    """12 rows divide over 4 devices, not over 8."""
    directory = lay_out(tmp_path, Plan(data=8))
    found, said = choose("training.global_batch=12", directory=directory)
    assert "does not fit its configuration any more" in said
    assert found.plan.batch_shards in {1, 2, 4}
    assert found.plan.num_devices == 8


@pytest.mark.parametrize("name", ["plan.yaml", "prediction.json"])
def test_damaged_files_do_not_stop_a_run(choose, tmp_path: Path, name: str) -> None:
    (lay_out(tmp_path, Plan(fsdp=8)) / name).write_text("{")
    found, _ = choose()
    assert found.prediction is not None
    assert found.prediction["since_step"] == 4


def test_a_plan_without_a_checkpoint_is_none_to_keep(choose, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(to_yaml(Plan(data=2, fsdp=4)))
    found, said = choose()
    assert "as the run has it" not in said
    assert found.plan != Plan(data=2, fsdp=4)


def test_a_plan_by_hand_is_taken_and_predicted(choose) -> None:
    found, said = choose("plan.data=2", "plan.tensor=4", "plan.remat=full")
    assert found.plan == Plan(data=2, tensor=4, remat="full")
    assert found.prediction is not None
    assert (found.prediction["chosen_by"], said) == ("by hand", "")
    # Too few for the devices: training refuses it with its own message, so nothing is predicted.
    few, _ = choose("plan.data=2")
    assert few == Chosen(Plan(data=2))


def test_a_pipeline_by_hand_is_predicted_as_it_runs(choose) -> None:
    found, said = choose("plan.pipeline=2", "plan.data=4", "plan.microbatches=2")
    assert found.plan == Plan(pipeline=2, data=4, microbatches=2)
    assert found.prediction is not None
    assert found.prediction["time_seconds"]["pipeline bubble"] > 0
    assert "schedule=1f1b" in found.prediction["plan"]
    assert said == ""


def test_fewer_microbatches_than_stages_are_warned_of(choose) -> None:
    """One microbatch of two stages: each idles for half of the step; a third with two."""
    _, said = choose("plan.pipeline=2", "plan.data=4")
    assert said == (
        "warning: microbatches=1 for pipeline=2: stages are idle for 50% of a step; microbatches=3 would halve that"
    )


def test_a_pipeline_that_training_refuses_is_not_predicted(choose) -> None:
    """Two chunks a stage of a schedule without chunks; layers that do not add up."""
    for key in ("plan.virtual_stages=2", "plan.stage_layers=[9, 9]"):
        with_key = ("plan.pipeline=2", "plan.data=4", "plan.microbatches=2", key)
        found, _ = choose(*with_key)
        assert found.prediction is None


def test_stages_are_kept_by_a_run_that_goes_on(choose, tmp_path: Path) -> None:
    plan = Plan(pipeline=2, data=4, microbatches=2, schedule="gpipe")
    found, said = choose(directory=lay_out(tmp_path, plan))
    assert found.plan == plan
    assert "as the run has it" in said


def test_the_losss_rule_is_kept_by_a_run_that_goes_on(choose, tmp_path: Path) -> None:
    """The planner chose it, so no configuration has it; another one of the user's stays beside it."""
    plan = Plan(fsdp=4, tensor=2, rules={"vocab_activation": "fsdp"})
    directory = lay_out(tmp_path, plan)
    found, said = choose(directory=directory)
    assert found.plan == plan
    assert "vocab_activation=fsdp, as the run has it" in said
    both, _ = choose("plan.rules={norm_sequence: null}", directory=directory)
    assert both.plan.rules == {"vocab_activation": "fsdp", "norm_sequence": None}
    without, _ = choose("plan.rules={vocab_activation: null}", directory=directory)
    assert without.plan.rules == {"vocab_activation": None}


def test_an_axis_that_the_user_splits_otherwise_is_respected(choose) -> None:
    """With the vocabulary over fsdp, 300 rows rule out 8 shards of it: the trainer's own rules have the last word."""
    found, _ = choose("plan.rules={vocab: fsdp, embed: null}")
    assert 300 % found.plan.fsdp == 0
    assert found.plan.num_devices == 8


def test_a_model_of_ones_own_is_laid_out_without_the_planner(choose, tmp_path: Path) -> None:
    file = tmp_path / "bigram.py"
    file.write_text(OWN_MODEL)
    found, said = choose(f"model={file}:build")
    assert found == Chosen(Plan(fsdp=8))
    assert "a module of your own" in said


def test_a_batch_that_divides_over_nothing_is_refused(config: Path, tmp_path: Path) -> None:
    answer = call(
        "train",
        config,
        "training.global_batch=3",
        "plan.microbatches=2",
        "--run-dir",
        tmp_path / "run",
    )
    assert answer.status == 2
    assert "training.global_batch=3 does not divide" in answer.err


def test_here_is_saved_as_a_cluster_that_can_be_planned_on(tmp_path: Path) -> None:
    said: list[str] = []
    cluster = cluster_here(said.append, tmp_path / "here.yaml")
    assert parse_cluster(str(tmp_path / "here.yaml")) == cluster
    assert cluster.num_devices == 8
    assert "host (8 devices): all-gather" in said[0]
