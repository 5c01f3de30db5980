"""What a run directory holds, read without trusting that any of it is there."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jaxscale.errors import UserError
from jaxscale.telemetry.metrics import read

Points = list[tuple[int, float]]
# What a run's planner keeps beside `plan.yaml`.
PREDICTION_FILE = "prediction.json"


@dataclass(frozen=True)
class Sample:
    step: int
    text: str
    file: str


@dataclass(frozen=True)
class RunData:
    """The pieces of a run; an absent one is empty."""

    name: str
    records: list[dict[str, Any]]
    config: str
    plan: str
    environment: dict[str, Any]
    samples: list[Sample]
    summary: dict[str, Any]
    prediction: dict[str, Any] = field(default_factory=dict)

    def points(self, key: str) -> Points:
        """(step, value) of every record that has a finite value for `key`, in order of step."""
        points = [(r["step"], float(r[key])) for r in self.records if r.get(key) is not None]
        return sorted(points, key=lambda point: point[0])

    def nonfinite_steps(self, key: str) -> list[int]:
        return [r["step"] for r in self.records if key in r.get("nonfinite", ())]

    @property
    def last_step(self) -> int:
        return max((record["step"] for record in self.records), default=0)

    @property
    def planned_steps(self) -> int | None:
        """`training.steps` of the configuration, where it says so."""
        config = yaml.safe_load(self.config) if self.config else None
        training = config.get("training") if isinstance(config, dict) else None
        steps = training.get("steps") if isinstance(training, dict) else None
        return steps if isinstance(steps, int) else None


def load_run(directory: Path, records: list[dict[str, Any]] | None = None) -> RunData:
    """Everything the report shows; `records`: of its metrics, where they have been read already.

    Raises UserError for a directory that is not there.
    """
    if not directory.is_dir():
        raise UserError(f"no run directory at {directory}: give the directory of a training run")
    return RunData(
        name=directory.resolve().name,
        records=read(directory / "metrics.jsonl") if records is None else records,
        config=_text(directory / "config.yaml"),
        plan=_text(directory / "plan.yaml"),
        environment=_json_object(directory / "environment.json"),
        samples=_samples(directory / "samples"),
        summary=_json_object(directory / "summary.json"),
        prediction=_json_object(directory / PREDICTION_FILE),
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or was cut off while being written."""
    try:
        content = json.loads(_text(path) or "{}")
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _samples(directory: Path) -> list[Sample]:
    """Samples in order of step; files that are not named after a step are not samples."""
    files = [path for path in directory.glob("*.txt") if path.stem.isdecimal()]
    samples = [Sample(int(path.stem), _text(path), f"samples/{path.name}") for path in files]
    return sorted(samples, key=lambda sample: sample.step)
