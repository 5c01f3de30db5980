"""Cases that ask which layout is best: the planner's best beside the published one, and claims in words."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from jaxscale.planner import search
from jaxscale.planner.calibration import efficiency_of
from jaxscale.planner.layout import AXES
from jaxscale.planner.parameters import parameter_groups
from jaxscale.planner.pins import Pins, parse_pins
from jaxscale.planner.prediction import Prediction
from planner_truth.cases import Case, CaseFile, Unsupported
from planner_truth.layouts import OPEN_REMATS, OPEN_ROWS
from planner_truth.meshes import axis_name, named_mesh, parse_mesh
from planner_truth.remats import remat_of
from planner_truth.settings import Setting, best, settings_of
from planner_truth.stacks import software_of
from planner_truth.values import Chosen, Predicted

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
    setting, published = best(settings_of(as_published(case), file))
    found = planner_best(case, setting)
    slower = published.step_seconds / found.step_seconds
    why = _why(published, found)

    def chosen(value: Mapping[str, int] | str | float) -> Chosen:
        return Chosen(value, slower, published.fits, why)

    layout = found.layout
    rows = setting.workload.global_batch / setting.cluster.num_chips
    values: dict[str, Predicted] = {
        "mesh": chosen({axis: size for axis, size in layout.mesh.items() if size > 1}),
        "remat": chosen(layout.remat),
        "per_chip_batch_seqs": rows,
        "fits": published.fits,
    }
    return {name: value for name, value in values.items() if name in case.expected}


def as_published(case: Case) -> Case:
    """The case with the published layout among what is given; what describes a choice is no longer open."""
    layout = {name: case.expected[name] for name in _LAYOUT_FIELDS if name in case.expected}
    if "per_chip_batch_seqs" in layout and "global_batch_seqs" in case.given:
        del layout["per_chip_batch_seqs"]
    return replace(case, given={**case.given, **layout})


def planner_best(case: Case, setting: Setting) -> Prediction:
    """The fastest layout that fits, of all that the software (or `allowed_axes`) has. Raises Unsupported."""
    problem = search.Problem(
        workload=setting.workload,
        groups=parameter_groups(setting.workload.shape),
        cluster=setting.cluster,
        stack=setting.stack,
        efficiency=efficiency_of(setting.cluster),
        space=_space(case),
    )
    meshes = search.divisible_meshes(problem).kept
    if not len(meshes):
        raise Unsupported("no mesh of these devices divides the model and the batch")
    found = search.ranked(problem, list(search.blocks(problem, meshes)), 1)
    if not found:
        raise Unsupported("the planner finds no layout that fits")
    return replace(setting, layout=found[0].layout).predict()


def _space(case: Case) -> search.Space:
    software = software_of(case)
    named = case.given.get("allowed_axes")
    axes = tuple(axis for axis in map(axis_name, named) if axis) if named else software.axes
    space = search.Space(axes=tuple(axis for axis in AXES if axis in axes), pins=_pins(case))
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


def _why(published: Prediction, found: Prediction) -> str:
    """The largest differences of time between the two, in words."""
    theirs = {line.component: line.value for line in published.time}
    ours = {line.component: line.value for line in found.time}
    gains = sorted(
        ((theirs.get(name, 0) - ours.get(name, 0), name) for name in {*theirs, *ours}), reverse=True
    )
    said = ", ".join(f"{name} {-seconds:+.3g} s" for seconds, name in gains[:2] if seconds > 0)
    mesh = " x ".join(f"{axis} {size}" for axis, size in found.layout.mesh.items() if size > 1)
    ratio = published.step_seconds / found.step_seconds
    return (
        f"the published layout takes {ratio:.2f} of the planner's best ({mesh or 'one device'}, "
        f"remat {found.layout.remat}, {found.layout.microbatches} microbatches){': ' + said if said else ''}"
    )


def best_option(case: Case, file: CaseFile) -> dict[str, Predicted]:
    """Of layouts that are listed in words, the fastest, and how much faster than the slowest. Raises Unsupported."""
    times = {}
    for option in case.given["options"]:
        mesh = parse_mesh(option) or _pure(option)
        changed = replace(case, given={**case.given, "mesh": mesh})
        times[option] = best(settings_of(changed, file))[1].step_seconds
    fastest = min(times, key=lambda option: times[option])
    return {"best": fastest, "speedup": max(times.values()) / times[fastest]}


def _pure(option: str) -> Mapping[str, int]:
    """`pure ZeRO-3`, `FSDP`: one axis over everything, which is what an empty mesh means."""
    if not any(word in option.lower() for word in ("zero-3", "fsdp")):
        raise Unsupported(f"no mesh is meant by {option!r}")
    return {}


def best_microbatch(case: Case, file: CaseFile) -> float:
    """Rows of the fastest microbatch, at a batch that every one of them divides. Raises Unsupported."""
    stages = prod(named_mesh(case.given.get("mesh", {})).values()) or 1
    batch = case.given.get("global_batch_seqs", OPEN_ROWS[-1] * min(stages, 16))
    times: dict[int, float] = {}
    for rows in OPEN_ROWS[:4]:
        given = {"remat": "full", **case.given, "global_batch_seqs": batch, "microbatch": rows}
        _, prediction = best(settings_of(replace(case, given=given), file))
        if prediction.fits:
            times[rows] = prediction.step_seconds
    if not times:
        raise Unsupported("no microbatch fits")
    return float(min(times, key=lambda rows: times[rows]))
