"""The parts of `jaxscale plan`: what was asked, and everything that is printed of the answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from jaxscale.cli.render.plan_breakdown import print_breakdown
from jaxscale.cli.render.plan_comparison import (
    change_words,
    comparison_data,
    moves_data,
    print_comparison,
    print_moves,
)
from jaxscale.cli.render.plan_data import as_data
from jaxscale.cli.render.plan_html import as_page
from jaxscale.cli.render.plan_tables import print_answer, print_header, print_rejected
from jaxscale.config.loading import load_config, load_model
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.errors import UserError
from jaxscale.hardware.catalogue import explain_name, parse_cluster, with_devices, with_overrides
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.report.comparison import DEPTH, Comparison, Move, compare, first, moves, side
from jaxscale.planner.report.question import Question, Recipe, Request, make_question
from jaxscale.planner.report.remedies import shortage, shortage_text
from jaxscale.planner.search.answer import Answer, answer
from jaxscale.planner.search.exhaustive import Problem

if TYPE_CHECKING:
    from jaxscale.cli.verification import Verified
    from jaxscale.kernels.choice import Choice

HERE = "here"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What to show beside the table. show: rank of the plan that is broken down. first, second: plans to compare."""

    top: int = 5
    show: int = 1
    as_json: bool = False
    formulas: bool = False
    first: str | None = None
    second: str | None = None
    what_if: tuple[str, ...] = ()
    devices: int | None = None
    html: Path | None = None


@dataclass(frozen=True)
class Found:
    """Everything there is to show. changed: the answer on the other cluster. moved: ranks, where both are as large.

    kernels: the choices of the shown plan's step, where they were asked for.
    """

    question: Question
    answer: Answer
    comparison: Comparison | None
    changed: Answer | None
    moved: tuple[Move, ...]
    verified: "Verified | None" = None
    kernels: "Sequence[Choice] | None" = None


def ask(config: Path, overrides: Sequence[str], cluster: Cluster, request: Request) -> Question:
    """The question of a run's file, or of a model's."""
    section, length = load_model(config, overrides)
    if length is None:
        return make_question(section, config.stem, cluster, request)
    run = load_config(config, overrides)
    filled = replace(
        request,
        batch=request.batch or run.training.global_batch,
        sequence=request.sequence or run.data.sequence_length,
        recipe=recipe_of(run),
    )
    return make_question(section, run.name, cluster, filled)


def recipe_of(run: RunConfig) -> Recipe:
    """What a run's training section means for memory: the optimizer's state as training itself describes it."""
    from jaxscale.models.build import model_builder
    from jaxscale.models.description import blueprint
    from jaxscale.training.state_bytes import kept_bytes_per_parameter

    training = run.training
    averaged = " and averaged parameters" if training.ema_decay is not None else ""
    return Recipe(
        optimizer=training.optimizer.name + averaged,
        moments_bytes=kept_bytes_per_parameter(
            run, blueprint(model_builder(run.model)).description
        ),
        loss_chunk=training.loss_chunk,
        precision=run.plan.precision if isinstance(run.plan, Plan) else "auto",
    )


def find(question: Question, shown: Shown) -> Found:
    """Raises UserError where nothing fits: what is missing, and what would make it fit."""
    problem, top = question.problem, shown.top
    cluster = changed_cluster(problem.cluster, shown)
    if cluster is None:
        found = _answer(problem, top)
        _check_rank(found, shown.show)
        return Found(question, found, _comparison(found, shown), None, ())
    depth = max(top, DEPTH)
    before = _answer(problem, depth)
    after = _answer(replace(problem, cluster=cluster), depth)
    same_size = cluster.num_devices == problem.cluster.num_devices
    moved = moves(before, after, top) if same_size else ()
    return Found(question, first(before, top), _comparison(before, shown), first(after, top), moved)


def prepare_verification(cluster: Cluster) -> None:
    from jaxscale.cli.verification import prepare

    prepare(cluster)


def with_verification(found: Found, config: Path, overrides: Sequence[str], rank: int) -> Found:
    """What the compiler makes of the plan of a rank, on the changed cluster where there is one."""
    from jaxscale.cli.verification import run_of, verify

    target = found.changed or found.answer
    run = run_of(config, overrides, target.problem.workload)
    typer.echo(f"compiling the step for {target.problem.cluster.name} ...", err=True)
    return replace(found, verified=verify(target, run, rank))


def with_kernels(found: Found, config: Path, overrides: Sequence[str], rank: int) -> Found:
    """Which kernels the step of the plan of a rank takes, on the changed cluster where there is one."""
    from jaxscale.cli.kernel_table import kernels_of_plan
    from jaxscale.cli.verification import run_of

    target = found.changed or found.answer
    run = run_of(config, overrides, target.problem.workload)
    return replace(found, kernels=kernels_of_plan(target, run, rank))


def show_measured(run: Path, calibration: Path | None, as_json: bool) -> None:
    """`--measured RUN`: predicted against achieved."""
    from jaxscale.cli.render.measured import measured_data, print_measured
    from jaxscale.planner.measured.runs import compare as compare_with_run

    if as_json:
        typer.echo(json.dumps(measured_data(compare_with_run(run)), indent=2))
    else:
        print_measured(run, calibration)


def config_of(config: Path | None) -> Path:
    """Raises UserError where no file was named."""
    if config is None:
        raise UserError("which model? name the YAML file of a run or of a model (configs/models/)")
    return config


def _answer(problem: Problem, top: int) -> Answer:
    found = answer(problem, top)
    if not found.plans:
        raise UserError(shortage_text(shortage(problem)))
    return found


def changed_cluster(cluster: Cluster, shown: Shown) -> Cluster | None:
    """The cluster of `--what-if` and `--devices`, or None where neither was given."""
    given = [part for text in shown.what_if for part in text.split(",")]
    changes = dict(map(_change, given))
    changed = with_overrides(cluster, changes) if changes else cluster
    changed = changed if shown.devices is None else with_devices(changed, shown.devices)
    return None if changed is cluster else changed


def _change(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise UserError(f"--what-if {text}: write it as hbm=141GiB")
    return key.strip(), value.strip()


def _comparison(found: Answer, shown: Shown) -> Comparison | None:
    """Where only one plan is named, it is set against the best other one."""
    if shown.first is None and shown.second is None:
        return None
    first = side(shown.first or "1", found)
    other = "1" if first.prediction != found.best.prediction else "2"
    return compare(first, side(shown.second or other, found), found.problem.efficiency.error)


def show(found: Found, shown: Shown, cluster_words: str) -> None:
    """Print the answer, as text or as data, and write the page."""
    if shown.html is not None:
        write_page(found, shown.html, cluster_words)
    if shown.as_json:
        typer.echo(json.dumps(found_data(found, shown), indent=2))
        return
    console = Console()
    print_header(console, found.question, cluster_words)
    print_found(console, found, shown)
    if found.verified:
        from jaxscale.cli.render.plan_verified import print_verified

        print_verified(console, found.verified, (found.changed or found.answer).problem.cluster)
    if found.kernels is not None:
        from jaxscale.kernels.choice_table import choice_table

        console.print(f"\nkernels of plan {shown.show}", style="bold", highlight=False)
        typer.echo(choice_table(found.kernels))


def print_found(console: Console, found: Found, shown: Shown) -> None:
    """The comparison, the changed cluster, or the ranked plans with the breakdown of one."""
    if found.comparison:
        console.print()
        print_comparison(console, found.comparison)
        return
    print_answer(console, found.answer)
    if found.changed:
        print_changed(console, found, found.changed)
        return
    print_breakdown(console, found.answer.plans[shown.show - 1], formulas=shown.formulas)
    print_rejected(console, found.answer)


def print_changed(console: Console, found: Found, changed: Answer) -> None:
    """The answer on another cluster beside the first."""
    names = [one.problem.cluster.name for one in (found.answer, changed)]
    console.print(f"\n{' -> '.join(names)}", style="bold", highlight=False, markup=False)
    if found.moved:
        print_moves(console, found.moved)
    else:
        print_answer(console, changed)
    console.print(
        change_words(found.answer.best.prediction, changed.best.prediction), highlight=False
    )


def write_page(found: Found, path: Path, cluster_words: str) -> None:
    """Raises UserError where no file can be written."""
    page = as_page(found.question, found.changed or found.answer, cluster_words)
    try:
        path.write_text(page, encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--html {path}: {error.strerror}") from None


def found_data(found: Found, shown: Shown) -> dict[str, Any]:
    data = as_data(found.question, found.answer, formulas=shown.formulas)
    if found.comparison:
        data["comparison"] = comparison_data(found.comparison)
    if found.changed:
        data["what_if"] = as_data(found.question, found.changed)
        data["what_if"]["moves"] = moves_data(found.moved)
    if found.verified:
        from jaxscale.cli.render.plan_verified import verified_data

        cluster = (found.changed or found.answer).problem.cluster
        data["verify"] = verified_data(found.verified, cluster)
    if found.kernels is not None:
        from jaxscale.kernels.choice_table import choice_data

        data["kernels"] = choice_data(found.kernels)
    return data


def cluster_words(text: str, cluster: Cluster) -> str:
    """What a cluster's name stands for."""
    if text.strip() == HERE or text.strip().lower().endswith((".yaml", ".yml")):
        dims = " x ".join(f"{dim.size} ({dim.network})" for dim in cluster.dims) or "one"
        return f"{cluster.name} is {cluster.num_devices:,} {cluster.chip.name}: {dims}"
    return explain_name(text).removesuffix(f": {text.strip()}")


def _check_rank(found: Answer, rank: int) -> None:
    if rank > len(found.plans):
        raise UserError(f"--show {rank}: there are plans of rank 1 to {len(found.plans)}")


def cluster_of(text: str, save: Path | None = None) -> Cluster:
    """The named cluster, or the attached devices. Raises UserError where none of that name exists."""
    if not text:
        raise UserError("which cluster? for example --on h100:8x4, --on v5p:4x4x8, --on cpu:8")
    if text.strip() != HERE:
        return parse_cluster(text)
    from jaxscale.cli.attached import cluster_here

    return cluster_here(lambda line: typer.echo(line, err=True), save)
