"""Predicted against achieved: the record that a run keeps of its plan's prediction, and what the run then did."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.hardware.catalogue import cluster_to_yaml, load_cluster_file
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.costs.calibration import Efficiency
from jaxscale.planner.model.source import groups_of, shape_of
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.exhaustive import Problem
from jaxscale.planner.search.proposal import run_problem, to_layout
from jaxscale.planner.search.rejections import words
from jaxscale.planner.vocabulary.prediction import Line, Prediction
from jaxscale.telemetry.report.predicted import Steady, steady
from jaxscale.telemetry.report.run import PREDICTION_FILE, load_run

# What is read of a prediction; the rest is for people.
_KEPT = (
    "model", "cluster", "plan", "step_seconds", "tokens_per_step", "peak_bytes", "time_seconds", "memory_bytes",
    "stack", "notes",
)  # fmt: skip
_CPU_NOTE = (
    "CPU devices share one host: their peak is a placeholder, and no speed is claimed for them"
)


@dataclass(frozen=True)
class Kept:
    """What a run's `prediction.json` says. record: its numbers. since_step: the steps after it ran under this plan."""

    record: Mapping[str, Any]
    since_step: int
    plan: Plan
    cluster: Cluster
    efficiency: Efficiency


@dataclass(frozen=True)
class Comparison:
    """A run's prediction and its steady state."""

    run: Path
    model: str
    kept: Kept
    measured: Steady

    @property
    def predicted_seconds(self) -> float:
        return float(self.kept.record["step_seconds"])

    @property
    def ratio(self) -> float:
        """Measured step time over predicted."""
        return self.measured.step_seconds / self.predicted_seconds

    @property
    def tokens_per_step(self) -> int:
        return int(self.kept.record["tokens_per_step"])

    @property
    def predicted_peak(self) -> float:
        return float(self.kept.record["peak_bytes"])

    @property
    def computing_seconds(self) -> float:
        """A measured step without what it waited for data and checkpoints, which the planner does not predict."""
        return self.measured.step_seconds - self.measured.waiting_seconds


def record_of(
    problem: Problem, plan: Plan, prediction: Prediction, *, chosen_by: str, since_step: int = 0
) -> dict[str, Any]:
    """The content of `prediction.json`: numbers by component, and everything that they were computed from.

    chosen_by: whose plan it is. since_step: the steps after it run under this plan.
    """
    return {
        "model": problem.workload.shape.name,
        "cluster": problem.cluster.name,
        "plan": words(prediction.layout),
        "chosen_by": chosen_by,
        "since_step": since_step,
        "step_seconds": prediction.step_seconds,
        "tokens_per_step": prediction.tokens,
        "tokens_per_second_per_chip": prediction.tokens_per_second_per_chip,
        "mfu": prediction.mfu,
        "peak_bytes": prediction.peak_bytes,
        "usable_bytes": prediction.usable_bytes,
        "time_seconds": _by_component(prediction.time),
        "memory_bytes": _by_component(prediction.memory),
        "efficiency": asdict(problem.efficiency),
        "stack": {
            "name": problem.stack.name,
            "source": problem.stack.source,
            "matmul_dtype": problem.stack.matmul_dtype,
            "moments_bytes": problem.stack.moments_bytes,
            "loss_chunk": problem.stack.loss_chunk,
        },
        "notes": [_CPU_NOTE] if problem.cluster.kind == "cpu" else [],
        "mesh": plan.model_dump(mode="json", exclude_unset=True),
        "hardware": yaml.safe_load(cluster_to_yaml(problem.cluster)),
    }


def compare(run_dir: Path) -> Comparison:
    """A run's prediction beside its steady state. Raises UserError where it has no prediction or too few steps."""
    data = load_run(run_dir)
    kept = read_kept(run_dir)
    found = steady(data, kept.since_step)
    if found is None:
        raise UserError(
            f"{run_dir} logged {len(data.records)} records, of which none is behind its warm-up: train for more steps, "
            "or log more often (telemetry.log_every)"
        )
    return Comparison(run_dir, str(kept.record["model"]), kept, found)


def read_kept(run_dir: Path) -> Kept:
    """The prediction that a run keeps. Raises UserError where there is none, or none that can be read."""
    path = run_dir / PREDICTION_FILE
    if not path.is_file():
        raise UserError(
            f"{run_dir} has no {PREDICTION_FILE}: it is written by `jaxscale train` for models and devices that the "
            "planner knows"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = Kept(
            record={key: record[key] for key in _KEPT},
            since_step=int(record["since_step"]),
            plan=Plan.model_validate(record["mesh"]),
            cluster=_cluster(record["hardware"]),
            efficiency=_efficiency(record["efficiency"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a prediction as `jaxscale train` writes it: {error}"
        ) from None
    return kept


def problem_of_run(run_dir: Path, kept: Kept) -> Problem:
    """The question that the kept prediction answered, put again."""
    config = load_config(run_dir / "config.yaml")
    stack = kept.record["stack"]
    return run_problem(
        Workload(
            shape_of(config.model, str(kept.record["model"])),
            config.training.global_batch,
            config.data.sequence_length,
        ),
        groups_of(config.model),
        kept.cluster,
        kept.plan,
        kept.efficiency,
        moments_bytes=float(stack["moments_bytes"]),
        loss_chunk=int(stack["loss_chunk"]),
    )


def plan_words(plan: Plan) -> str:
    return words(to_layout(plan))


def _by_component(lines: tuple[Line, ...]) -> dict[str, float]:
    return {line.component: line.value for line in lines if line.value}


def _cluster(tree: Mapping[str, Any]) -> Cluster:
    """Through a file, since that is what checks and completes a cluster."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        path.write_text(yaml.safe_dump(dict(tree), allow_unicode=True), encoding="utf-8")
        return load_cluster_file(path)


def _efficiency(values: Mapping[str, Any]) -> Efficiency:
    known = {field.name for field in fields(Efficiency)}
    return Efficiency(**{name: value for name, value in values.items() if name in known})
