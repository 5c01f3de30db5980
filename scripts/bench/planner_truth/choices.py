"""Cases that ask which layout is best: the planner's best beside the published one, and claims in words."""

import math
from collections.abc import Mapping
from dataclasses import replace
from math import prod

from jaxscale.planner.costs.calibration import efficiency_of
from jaxscale.planner.model.parameters import parameter_groups
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search import exhaustive
from jaxscale.planner.search.pins import Pins, parse_pins
from jaxscale.planner.vocabulary.layout import AXES
from jaxscale.planner.vocabulary.prediction import Prediction
from planner_truth.cases import Case, CaseFile, Unsupported
from planner_truth.clusters import clusters_of
from planner_truth.layouts import OPEN_REMATS, OPEN_ROWS, batches, shards
from planner_truth.meshes import axis_name, given_mesh, named_mesh, parse_mesh
from planner_truth.models import sequence_of
from planner_truth.reasons import why
from planner_truth.remats import remat_of
from planner_truth.settings import Setting, best, settings_of
from planner_truth.stacks import software_of
from planner_truth.values import Chosen, Explained, Predicted

# Of an expected block, what describes a layout.
_LAYOUT_FIELDS = (
    "mesh",
    "remat",
    "per_chip_batch_seqs",
    "microbatch",
    "schedule",
    "virtual_stages",
)


def published_choice(case: Case, file: CaseFile) -> dict[str, Predicted]:
    """Every layout quantity of the planner's best, with how the published layout does beside it. Raises Unsupported."""
    setting, published = best(_ways_to_run(as_published(case), file))
    asked = as_asked(case, setting)
    found = planner_best(case, asked)
    slower = published.step_seconds / found.step_seconds
    said = why(case, published, found)

    def chosen(value: Mapping[str, int] | str | float) -> Chosen:
        return Chosen(value, slower, published.fits, said)

    layout = found.layout
    rows = asked.workload.global_batch / asked.cluster.num_chips
    values: dict[str, Predicted] = {
        "mesh": chosen({axis: size for axis, size in layout.mesh.items() if size > 1}),
        "remat": chosen(layout.remat),
        "per_chip_batch_seqs": rows,
        "microbatch": chosen(
            asked.workload.global_batch / (layout.microbatches * shards(layout.mesh))
        ),
        "fits": published.fits,
    }
    return {name: value for name, value in values.items() if name in case.expected}


def _ways_to_run(case: Case, file: CaseFile) -> list[Setting]:
    """A pipeline whose schedule is open runs the best that its software has, as the planner's does."""
    pipelined = given_mesh(case.given).get("pipeline", 1) > 1
    if not pipelined or case.given.keys() & {"schedule", "virtual_stages", "virtual"}:
        return settings_of(case, file)
    schedules = software_of(case).schedules
    cases = [replace(case, given={**case.given, "schedule": name}) for name in schedules]
    return [setting for one in cases for setting in settings_of(one, file)]


def as_published(case: Case) -> Case:
    """The case with the published layout among what is given; what describes a choice is no longer open."""
    layout = {name: case.expected[name] for name in _LAYOUT_FIELDS if name in case.expected}
    if "per_chip_batch_seqs" in layout and "global_batch_seqs" in case.given:
        del layout["per_chip_batch_seqs"]
    return replace(case, given={**case.given, **layout})


def as_asked(case: Case, setting: Setting) -> Setting:
    """The published setting with the cluster and the batch of what is given: the planner's own choice sees no more.

    A batch that is open, or given a device of the published mesh, is the published one.
    """
    cluster = next(clusters_of(case))
    sequence = sequence_of(case)
    batch, opened = next(batches(case, {"fsdp": cluster.num_devices}, sequence))
    if opened or case.given.keys() & {"microbatch", "local_batch", "local_batch_seqs"}:
        batch = setting.workload.global_batch
    workload = Workload(setting.workload.shape, batch, sequence)
    return replace(setting, cluster=cluster, workload=workload)


def planner_best(case: Case, setting: Setting) -> Prediction:
    """The fastest layout that fits, of all that the software (or `allowed_axes`) has. Raises Unsupported."""
    problem = exhaustive.Problem(
        workload=setting.workload,
        groups=parameter_groups(setting.workload.shape),
        cluster=setting.cluster,
        stack=setting.stack,
        efficiency=efficiency_of(setting.cluster),
        space=_space(case),
    )
    meshes = exhaustive.divisible_meshes(problem).kept
    if not len(meshes):
        meshes = exhaustive.divisible_meshes(_padded(problem)).kept
    if not len(meshes):
        raise Unsupported("no mesh of these devices divides the model and the batch")
    found = exhaustive.ranked(problem, list(exhaustive.blocks(problem, meshes)), 1)
    if not found:
        raise Unsupported("the planner finds no layout that fits")
    return replace(setting, layout=found[0].layout).predict()


def _padded(problem: exhaustive.Problem) -> exhaustive.Problem:
    """The same for the rules of what divides: key heads repeated over `tensor`, words and tokens padded, as GSPMD does
    (PaLM: one key head, 256,000 words and 2,048 tokens over 12 devices)."""
    shape = problem.workload.shape

    def whole(count: int) -> int:
        return -(-count // shape.heads) * shape.heads

    padded = replace(shape, kv_heads=shape.heads, vocab=whole(shape.vocab))
    workload = replace(problem.workload, shape=padded, sequence=whole(problem.workload.sequence))
    return replace(problem, workload=workload)


def _space(case: Case) -> exhaustive.Space:
    software = software_of(case)
    named = case.given.get("allowed_axes")
    axes = tuple(axis for axis in map(axis_name, named) if axis) if named else software.axes
    space = exhaustive.Space(
        axes=tuple(axis for axis in AXES if axis in axes),
        schedules=software.schedules,
        pins=_pins(case),
    )
    if "zero" in case.given:
        space = replace(space, zeros=(1,) if case.given["zero"] else (0,))
    remat = remat_of(str(case.given.get("remat", "")), software.words) or software.remat
    return replace(space, remats=(remat,) if remat else OPEN_REMATS[software.words])


def _pins(case: Case) -> Pins:
    """Axes that a case fixes by a field of its own (`pipe: 1`), and what its software cannot do."""
    named = {
        name: case.given[name]
        for name in ("tensor", "pipe", "data", "expert", "context")
        if name in case.given
    }
    pins = [f"{axis}={size}" for axis, size in named_mesh(named).items()]
    software = software_of(case)
    one_pass = software.whole_batch and "pipeline" not in software.axes
    return parse_pins([*pins, "microbatches=1"] if one_pass else pins)


def best_option(case: Case, file: CaseFile) -> dict[str, Predicted]:
    """Of layouts that are listed in words, the fastest, and how much faster than the slowest. Raises Unsupported."""
    found = {}
    for option in case.given["options"]:
        mesh = parse_mesh(option) or _pure(case, option)
        changed = replace(case, given={**case.given, "mesh": mesh})
        found[option] = best(settings_of(changed, file))[1]
    # In tokens a second: a batch that is given a replica differs from layout to layout.
    order = sorted(found, key=lambda option: -found[option].tokens_per_second_per_chip)
    fastest, slowest = found[order[0]], found[order[-1]]
    said = why(case, slowest, fastest, name=order[-1])
    speedup = fastest.tokens_per_second_per_chip / slowest.tokens_per_second_per_chip
    return {"best": order[0], "speedup": Explained(speedup, said)}


def _pure(case: Case, option: str) -> Mapping[str, int]:
    """`pure ZeRO-3`, `FSDP`: one axis over everything. Raises Unsupported."""
    if not any(word in option.lower() for word in ("zero-3", "fsdp")):
        raise Unsupported(f"no mesh is meant by {option!r}")
    return {"fsdp": next(clusters_of(case)).num_devices}


def best_microbatch(case: Case, file: CaseFile) -> Chosen:
    """Rows of the fastest microbatch, at a batch that every one of them divides, beside the published one. Raises
    Unsupported."""
    stages = prod(named_mesh(case.given.get("mesh", {})).values()) or 1
    batch = case.given.get("global_batch_seqs", OPEN_ROWS[-1] * min(stages, 16))
    found: dict[float, Prediction] = {}
    for rows in OPEN_ROWS[:4]:
        given = {"remat": "full", **case.given, "global_batch_seqs": batch, "microbatch": rows}
        _, prediction = best(settings_of(replace(case, given=given), file))
        if prediction.fits:
            found[float(rows)] = prediction
    if not found:
        raise Unsupported("no microbatch fits")
    fastest = min(found, key=lambda rows: found[rows].step_seconds)
    published = found.get(case.expected["best_microbatch"])
    if published is None:
        return Chosen(fastest, math.inf, fits=False, why="the published microbatch does not fit")
    slower = published.step_seconds / found[fastest].step_seconds
    return Chosen(fastest, slower, published.fits, why(case, published, found[fastest]))
