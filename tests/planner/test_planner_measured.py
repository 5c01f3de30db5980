"""What a run did beside what was predicted of it, and the calibration that comes of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jaxscale.config.loading import validate
from jaxscale.config.plan import Plan
from jaxscale.config.text import to_yaml
from jaxscale.errors import UserError
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.planner.costs.calibration import efficiency_of
from jaxscale.planner.measured.calibration_file import (
    add_measurement,
    efficiency_with,
    measure,
    read_calibration,
)
from jaxscale.planner.measured.runs import compare, problem_of_run, read_kept, record_of
from jaxscale.planner.model.source import groups_of, shape_of
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.exhaustive import Problem
from jaxscale.planner.search.predict import predict
from jaxscale.planner.search.proposal import predict_plan, run_problem, to_layout
from jaxscale.telemetry.metrics import MetricsLog

MODEL = {
    "family": "llama3", "vocab_size": 4096, "max_positions": 2048, "num_layers": 4, "embed_dim": 1024, "num_heads": 8,
    "head_dim": 128, "num_kv_heads": 8, "mlp_dim": 4096,
}  # fmt: skip
CONFIG = {
    "model": MODEL,
    "data": {"sequence_length": 2048},
    "training": {"steps": 9, "global_batch": 64},
}
PLAN = Plan(fsdp=8, remat="full")


@pytest.fixture(scope="module")
def asked() -> Problem:
    config = validate(CONFIG, source="test")
    cluster = parse_cluster("h100:8")
    workload = Workload(shape_of(config.model, "run"), 64, 2048)
    return run_problem(workload, groups_of(config.model), cluster, PLAN, efficiency_of(cluster))


def write_run(
    folder: Path, asked: Problem, times: list[float], *, waiting: float = 0.0, since: int = 0
) -> Path:
    """A run of one window a step that took `times`."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(validate(CONFIG, source="test")))
    record = record_of(
        asked, PLAN, predict_plan(asked, PLAN), chosen_by="the planner", since_step=since
    )
    (folder / "prediction.json").write_text(json.dumps(record))
    log = MetricsLog(folder / "metrics.jsonl")
    for step, seconds in enumerate(times, start=1):
        log.write({
            "step": step, "step_seconds": seconds, "tokens_per_second": 64 * 2048 / seconds,
            "data_wait_seconds": waiting, "device_memory_peak_bytes": 7 * 2**30 + step,
        })  # fmt: skip
    log.close()
    return folder


def seconds_at(asked: Problem, products: float) -> float:
    efficiency = replace(asked.efficiency, products=products)
    found = predict(
        asked.workload,
        asked.cluster,
        to_layout(PLAN),
        asked.stack,
        groups=asked.groups,
        efficiency=efficiency,
    )
    return found.step_seconds


def test_compilation_and_warm_up_do_not_count(tmp_path: Path, asked: Problem) -> None:
    found = compare(write_run(tmp_path / "run", asked, [60.0, 3.0, 1.0, 1.2, 0.9, 1.0, 5.0]))
    assert found.measured.step_seconds == 1.0
    assert (found.measured.num_steps, found.measured.num_windows) == (5, 5)
    assert found.measured.peak_bytes == 7 * 2**30 + 7
    assert found.ratio == 1.0 / predict_plan(asked, PLAN).step_seconds


def test_only_steps_under_this_plan_count(tmp_path: Path, asked: Problem) -> None:
    found = compare(
        write_run(tmp_path / "run", asked, [9.0, 8.0, 8.0, 8.0, 30.0, 2.0, 1.0, 1.0], since=4)
    )
    assert (found.measured.step_seconds, found.measured.num_steps) == (1.0, 2)


def test_two_windows_are_enough_and_one_is_not(tmp_path: Path, asked: Problem) -> None:
    assert compare(write_run(tmp_path / "two", asked, [60.0, 1.5])).measured.step_seconds == 1.5
    with pytest.raises(UserError, match=r"logged 1 records.*train for more steps"):
        compare(write_run(tmp_path / "one", asked, [60.0]))


def test_the_question_of_a_run_can_be_put_again(tmp_path: Path, asked: Problem) -> None:
    """Everything that the prediction was computed from is in the run."""
    run = write_run(tmp_path / "run", asked, [1.0])
    kept = read_kept(run)
    again = predict_plan(problem_of_run(run, kept), kept.plan)
    assert again == predict_plan(asked, PLAN)
    assert sum(kept.record["time_seconds"].values()) == pytest.approx(again.step_seconds, rel=1e-12)
    assert sum(kept.record["memory_bytes"].values()) == pytest.approx(again.peak_bytes, rel=1e-12)


def test_calibration_finds_the_constant_that_the_times_were_made_with(
    tmp_path: Path, asked: Problem
) -> None:
    """Half a second of waiting for data is none of the chip's."""
    run = write_run(tmp_path / "run", asked, [seconds_at(asked, 0.42) + 0.5] * 5, waiting=0.5)
    # The bisection ends at one part in 2^49 of a range of five decades; the median and the subtraction round.
    assert measure(compare(run)).products == pytest.approx(0.42, rel=1e-6)


def test_a_step_that_products_cannot_explain_is_refused(tmp_path: Path, asked: Problem) -> None:
    run = write_run(tmp_path / "run", asked, [seconds_at(asked, 1e9) * 0.9] * 3)
    with pytest.raises(UserError, match="no share of the chip's peak explains"):
        measure(compare(run))


def test_later_plans_use_the_median_of_the_measured_runs(tmp_path: Path, asked: Problem) -> None:
    path = tmp_path / "mine.yaml"
    for name, products in (("a", 0.3), ("b", 0.5), ("c", 0.6)):
        run = write_run(tmp_path / name, asked, [seconds_at(asked, products)] * 4)
        add_measurement(path, "H100 SXM", measure(compare(run)))
    entry = read_calibration(path).chips["H100 SXM"]
    assert entry.products == pytest.approx(0.5, rel=1e-6)
    assert [Path(run.run).name for run in entry.runs] == ["a", "b", "c"]
    assert all(run.jax and run.date and run.steps == 2 for run in entry.runs)
    used = efficiency_with(path, parse_cluster("h100:8x4"))
    table = efficiency_of(parse_cluster("h100:8x4"))
    assert used == replace(table, products=entry.products, source=used.source)
    assert "3 runs" in used.source
    # Another chip keeps the planner's own constant.
    assert efficiency_with(path, parse_cluster("v5p:2x2x1")) == efficiency_of(
        parse_cluster("v5p:2x2x1")
    )


def test_a_run_measured_again_replaces_its_measurement(tmp_path: Path, asked: Problem) -> None:
    path = tmp_path / "mine.yaml"
    first = measure(compare(write_run(tmp_path / "run", asked, [seconds_at(asked, 0.5)] * 4)))
    add_measurement(path, "H100 SXM", first)
    entry = add_measurement(path, "H100 SXM", replace(first, products=0.4)).chips["H100 SXM"]
    assert (len(entry.runs), entry.products) == (1, 0.4)


def test_measured_links_are_taken_as_they_are() -> None:
    cluster = parse_cluster("cpu:4")
    measured = replace(
        cluster, dims=tuple(replace(dim, source="measured here: x") for dim in cluster.dims)
    )
    assert efficiency_with(None, measured) == replace(efficiency_of(cluster), network=1.0)
    assert efficiency_with(None, cluster) == efficiency_of(cluster)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("chips: {H200: {products: -1}}", r"products"),
        ("chips: {H200: {product: 1}}", r"(.|\n)*'chips.H200.product' .did you mean 'products'"),
        ("- 1", r"chips"),
        ("a: [", r"not a YAML file"),
    ],
)
def test_a_wrong_calibration_file_is_explained(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"wrong\.yaml.*{message}"):
        efficiency_with(path, parse_cluster("cpu:1"))


def test_a_missing_file_or_prediction_says_what_writes_it(tmp_path: Path, asked: Problem) -> None:
    with pytest.raises(UserError, match="jaxscale plan --measured RUN --calibration"):
        efficiency_with(tmp_path / "none.yaml", parse_cluster("cpu:1"))
    with pytest.raises(UserError, match=r"no prediction\.json.*jaxscale train"):
        read_kept(tmp_path)
    run = write_run(tmp_path / "run", asked, [1.0])
    record = yaml.safe_load((run / "prediction.json").read_text())
    del record["hardware"]
    (run / "prediction.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="not a prediction"):
        read_kept(run)
