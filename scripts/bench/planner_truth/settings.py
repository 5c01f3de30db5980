"""A case as questions to the planner: every way to fill in what it leaves open."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from jaxscale.errors import UserError
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.predict import predict
from jaxscale.planner.search.spread import default_spread, distinct_spreads
from jaxscale.planner.vocabulary.layout import Layout
from jaxscale.planner.vocabulary.prediction import Prediction
from jaxscale.planner.vocabulary.stack import Stack
from planner_truth.cases import Case, CaseFile, Unsupported
from planner_truth.clusters import clusters_of
from planner_truth.layouts import batches, layouts
from planner_truth.meshes import given_mesh, named_mesh
from planner_truth.models import sequence_of, shape_of
from planner_truth.stacks import software_of


@dataclass(frozen=True)
class Setting:
    """One question to the planner. slow: axes that are said to cross the slow network, with their part of it.

    open: what was chosen here because the case does not say it.
    """

    workload: Workload
    cluster: Cluster
    layout: Layout
    stack: Stack
    slow: Mapping[str, int] = field(default_factory=dict)
    open: tuple[str, ...] = ()

    def predict(self) -> Prediction:
        return predict(self.workload, self.cluster, self.layout, self.stack)


def best(settings: Sequence[Setting]) -> tuple[Setting, Prediction]:
    """The fastest that fits, in tokens a second; if none fits, the one that needs least memory. Raises Unsupported."""
    setting, _ = _best(settings)
    return _best(list(_spread_out(setting)) or [setting])


def _best(settings: Sequence[Setting]) -> tuple[Setting, Prediction]:
    found, reason = [], "no layout could be made of what is given"
    for setting in settings:
        try:
            found.append((setting, setting.predict()))
        except UserError as error:
            reason = str(error)
    if not found:
        raise Unsupported(reason)
    return max(found, key=lambda pair: _worth(pair[1]))


def _worth(prediction: Prediction) -> tuple[bool, float]:
    if not prediction.fits:
        return False, -prediction.peak_bytes
    return True, prediction.tokens_per_second_per_chip


def _spread_out(setting: Setting) -> Iterator[Setting]:
    """The setting on every spread over a torus: whoever runs one lays the mesh out well. GPUs come in order of rank."""
    if setting.cluster.kind != "tpu":
        return
    for spread in distinct_spreads(setting.cluster, setting.layout.mesh):
        if all(spread[axis][-1] == size for axis, size in setting.slow.items()):
            yield replace(setting, layout=replace(setting.layout, spread=spread))


def settings_of(case: Case, file: CaseFile) -> list[Setting]:
    """Raises Unsupported."""
    software = software_of(case)
    sequence = sequence_of(case)
    shape = shape_of(case, file, sequence)
    mesh, cluster = mesh_and_cluster(case)
    slow = _slow_axes(case, cluster)
    stack = _of_width(software.stack, shape)
    found = []
    for batch, opened in batches(case, mesh, sequence):
        workload = Workload(shape, batch, sequence)
        for layout, more in layouts(case, software, workload, mesh):
            found.append(Setting(workload, cluster, layout, stack, slow, (*opened, *more)))
    return found


# Of the narrowest model that `Stack.layer_seconds` was found with.
_WIDE = 12288


def _of_width(stack: Stack, shape: ModelShape) -> Stack:
    """Without the fixed time of a layer where it would be most of a narrow one's: nothing says that those have it."""
    return stack if shape.embed >= _WIDE else replace(stack, layer_seconds=0.0)


def mesh_and_cluster(case: Case) -> tuple[dict[str, int], Cluster]:
    """The mesh, filled up to the devices, and the first torus that it lies over. Raises Unsupported."""
    reason = "no cluster"
    for cluster in clusters_of(case):
        mesh = _full_mesh(case, cluster)
        try:
            default_spread(cluster, mesh)
        except UserError as error:
            reason = str(error)
            continue
        return mesh, cluster
    raise Unsupported(reason)


def _full_mesh(case: Case, cluster: Cluster) -> dict[str, int]:
    """Devices that the named axes leave over are FSDP where nothing is named (or it says so), else data parallelism."""
    mesh = _folded(given_mesh(case.given), cluster.num_devices)
    left, rest = divmod(cluster.num_devices, prod(mesh.values()))
    if rest or (left > 1 and "data" in mesh):
        sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
        raise Unsupported(f"mesh {sizes} is not {cluster.num_devices} devices")
    filled = "fsdp" if not mesh or "FSDP" in str(case.given.get("strategy", "")) else "data"
    return {**mesh, filled: mesh.get(filled, 1) * left}


def _folded(mesh: dict[str, int], devices: int) -> dict[str, int]:
    """Experts that are said to use the devices of `tensor` and `context`, too (Megatron's EP): over what is left.

    Those of `tensor` have a part of each expert here, instead of experts of their own: as many bytes.
    """
    times, rest = divmod(prod(mesh.values()), devices)
    inner = mesh.get("tensor", 1) * mesh.get("context", 1)
    expert = mesh.get("expert", 1)
    if rest or times < 2 or inner % times or expert % times:
        return mesh
    return {**mesh, "expert": expert // times}


def _slow_axes(case: Case, cluster: Cluster) -> dict[str, int]:
    """Axes that are said to cross the slow network (`data_dcn`), where they are all that does."""
    block = case.given.get("mesh", {})
    slow = named_mesh(block, slow=True) if isinstance(block, dict) else {}
    last = cluster.dims[-1] if cluster.dims else None
    is_all = last is not None and last.slow and prod(slow.values()) == last.size
    return slow if is_all else {}
