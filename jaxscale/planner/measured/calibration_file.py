"""A calibration of one's own: what the products of each kind of chip reached in one's own runs, kept in a YAML file.

chips:
  H200:
    products: 0.71          # the median of the runs
    runs:
      - {run: runs/llama, products: 0.71, spread: 0.01, steps: 90, date: 2026-01-31, jax: 0.11.2, ...}
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from jaxscale.config.explain import explain
from jaxscale.config.section import Section
from jaxscale.errors import UserError
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.costs.calibration import Efficiency, efficiency_of
from jaxscale.planner.measured.runs import Comparison, problem_of_run
from jaxscale.planner.search.predict import predict
from jaxscale.planner.search.proposal import to_layout

# What a constant may be: far below, a run is bound by something else; above 1, a data sheet or a placeholder is wrong.
_LOWEST, _HIGHEST = 1e-4, 20.0
_HALVINGS = 50
_MEASURED = "measured here"


@dataclass(frozen=True)
class Measurement:
    """What one run says of a chip. products: of peak, with which the planner would have predicted this run's step.

    spread: of the run's own step times, relative. seconds, predicted: of a step, measured and as predicted before.
    """

    run: str
    products: float
    spread: float
    steps: int
    seconds: float
    predicted: float
    model: str
    cluster: str
    plan: str
    dtype: str
    stack: str
    jax: str
    date: str


class RunSection(Section):
    """A measurement as the file has it."""

    run: str = Field(description="the run's directory")
    products: float = Field(gt=0, description="of peak FLOP/s, that explain the step time")
    spread: float = Field(0.0, ge=0, description="of the step times, relative")
    steps: int = Field(0, ge=0, description="measured steps")
    seconds: float = Field(0.0, ge=0, description="of a step, measured")
    predicted: float = Field(0.0, ge=0, description="seconds of a step, as predicted before")
    model: str = Field("", description="what was trained")
    cluster: str = Field("", description="on what")
    plan: str = Field("", description="how it was laid out")
    dtype: str = Field("", description="of the products")
    stack: str = Field("", description="the software")
    jax: str = Field("", description="version of JAX")
    date: str = Field("", description="day of the measurement")


class ChipCalibration(Section):
    """One kind of chip."""

    products: float = Field(gt=0, description="of peak FLOP/s, in large matrix products")
    runs: tuple[RunSection, ...] = Field((), description="where it is from")


class CalibrationFile(Section):
    """The whole file."""

    chips: dict[str, ChipCalibration] = Field({}, description="by the chip's name")


def measure(found: Comparison) -> Measurement:
    """The one constant that makes the planner's formulas give the run's step time, everything else as it was.

    Raises UserError where no constant does: then something else than the products decides the step time.
    """
    kept = found.kept
    products = _solve(found)
    return Measurement(
        run=str(found.run),
        products=products,
        spread=found.measured.spread,
        steps=found.measured.num_steps,
        seconds=found.computing_seconds,
        predicted=found.predicted_seconds,
        model=found.model,
        cluster=kept.cluster.name,
        plan=str(kept.record["plan"]),
        dtype=str(kept.record["stack"]["matmul_dtype"]),
        stack=str(kept.record["stack"]["name"]),
        jax=version("jax"),
        date=datetime.now(UTC).date().isoformat(),
    )


def add_measurement(path: Path, chip: str, measurement: Measurement) -> CalibrationFile:
    """The file with this measurement in place of an earlier one of the same run; written, and returned."""
    before = read_calibration(path) if path.exists() else CalibrationFile()
    old = before.chips[chip].runs if chip in before.chips else ()
    runs = (*(run for run in old if run.run != measurement.run), _section(measurement))
    entry = ChipCalibration(products=_median(runs), runs=runs)
    content = CalibrationFile(chips={**before.chips, chip: entry})
    write_calibration(path, content)
    return content


def write_calibration(path: Path, content: CalibrationFile) -> None:
    """The whole file or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    tree: dict[str, Any] = content.model_dump(mode="json")
    temporary.write_text(yaml.safe_dump(tree, sort_keys=False, width=100), encoding="utf-8")
    temporary.replace(path)


def read_calibration(path: Path) -> CalibrationFile:
    """Raises UserError naming the file, the key, the value and what is expected."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no calibration file {path}: `jaxscale plan --measured RUN --calibration {path}` writes one"
        ) from None
    except (IsADirectoryError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None
    try:
        return CalibrationFile.model_validate(tree if isinstance(tree, dict) else {"chips": tree})
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, CalibrationFile)}") from None


def efficiency_with(path: Path | None, cluster: Cluster) -> Efficiency:
    """What a cluster's devices reach, by a calibration file where it has their chip, else by the planner's own table.

    Measured links (`parallel.link_benchmark`) are taken as they are: what collectives reach is in their numbers.
    """
    efficiency = efficiency_of(cluster)
    if cluster.dims and all(dim.source.startswith(_MEASURED) for dim in cluster.dims):
        efficiency = replace(efficiency, network=1.0)
    entry = read_calibration(path).chips.get(cluster.chip.name) if path else None
    if entry is None:
        return efficiency
    return replace(efficiency, products=entry.products, source=f"{path}: {_provenance(entry)}")


def _solve(found: Comparison) -> float:
    """Bisection: more of the peak is never slower."""
    problem, layout = problem_of_run(found.run, found.kept), to_layout(found.kept.plan)

    def seconds(products: float) -> float:
        efficiency = replace(problem.efficiency, products=products)
        return predict(
            problem.workload,
            problem.cluster,
            layout,
            problem.stack,
            groups=problem.groups,
            efficiency=efficiency,
        ).step_seconds

    wanted, low, high = found.computing_seconds, _LOWEST, _HIGHEST
    if not seconds(high) < wanted < seconds(low):
        raise UserError(
            f"{found.run}: no share of the chip's peak explains {wanted:.3g} s a step; without any products the "
            f"planner still predicts {seconds(high):.3g} s. Calibrate with a larger model, which products decide"
        )
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if seconds(middle) > wanted else (low, middle)
    return float((low * high) ** 0.5)


def _section(measurement: Measurement) -> RunSection:
    return RunSection.model_validate(asdict(measurement))


def _median(runs: Sequence[RunSection]) -> float:
    return statistics.median(run.products for run in runs)


def _provenance(entry: ChipCalibration) -> str:
    dates = sorted({run.date for run in entry.runs if run.date})
    when = f", {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "") if dates else ""
    return f"{len(entry.runs)} runs{when}"
