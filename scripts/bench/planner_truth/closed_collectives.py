"""Worked problems about collectives, from notation such as `AllGather_X([B_X,D_Y])`: times on a torus, on switches."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale.planner.closed_forms import collectives as forms
from planner_truth.cases import Unsupported
from planner_truth.closed_rooflines import product_time
from planner_truth.figures import SUPERPOD_UNIT, SUPERPOD_UNIT_EGRESS
from planner_truth.problem import Problem, Rule, dtype_bytes, parse_array
from planner_truth.symbols import Symbolic


@dataclass(frozen=True)
class Notation:
    """collective over `axes`; dims: (name, mesh axes that split it) of the array; element: bytes, 0 if not said."""

    collective: forms.Collective
    axes: tuple[str, ...]
    dims: tuple[tuple[str, tuple[str, ...]], ...]
    element: float


def parse_collective(text: str) -> Notation:
    """Raises Unsupported."""
    match = re.match(r"(AllGather|ReduceScatter|AllReduce|AllToAll)(?:_\{?([XYZ]+)[^(]*)?", text)
    if match is None:
        raise Unsupported(f"{text!r} is no collective")
    array = re.search(r"([a-z]+\d+)?\[([^\]]*)\]", text)
    dims = tuple(_dim(part) for part in array.group(2).split(",")) if array else ()
    element = dtype_bytes(array.group(1)) if array and array.group(1) else 0.0
    collective: forms.Collective = next(
        name for name in forms.RING_FACTORS if name == match.group(1)
    )
    return Notation(collective, tuple(match.group(2) or ""), dims, element)


def _dim(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, axes = text.strip().partition("_")
    return name, tuple(re.findall("[XYZ]", axes))


def seconds(problem: Problem) -> float:
    """By whichever of its forms the problem has."""
    if "matmul" in problem.given:
        return product_time(problem)[0]
    if problem.figures.node:
        return _switch_seconds(problem)
    if "axis" in problem.given and "array" in problem.given:
        return _small_array_seconds(problem)
    return _torus_seconds(problem, split_elsewhere=True)


def bound(problem: Problem) -> str:
    """Of a small array on one axis: what its hops take."""
    problem.needs("axis", "array")
    return "latency" if _shard_seconds(problem) <= problem.figures.hop else "bandwidth"


def _shard_seconds(problem: Problem) -> float:
    element, shape = parse_array(problem.given["array"])
    return element * math.prod(shape) / problem.need("axis") / problem.figures.link


def _wraps(problem: Problem, size: int) -> bool:
    return bool(problem.given.get("wrap", problem.figures.wraps(size)))


def _small_array_seconds(problem: Problem) -> float:
    """As many hops as the longest way, each as long as the latency or as one shard takes."""
    size = int(problem.given["axis"])
    hop = max(problem.figures.hop, _shard_seconds(problem))
    return forms.latency_seconds(size, hop, wraps=_wraps(problem, size))


def _sizes(problem: Problem) -> dict[str, int]:
    if "topology" in problem.given:
        return dict(zip("XYZ", problem.given["topology"], strict=False))
    mesh = problem.given.get("mesh", {})
    return {name: size for name, size in mesh.items() if isinstance(size, int)}


def _volume(problem: Problem, notation: Notation, *, split_elsewhere: bool) -> float:
    """Bytes of the array on one device before or after, whole over the axes of the collective."""
    given = problem.given
    if "array_bytes" in given or "bytes" in given:
        return float(given.get("array_bytes", given.get("bytes")))
    if "array" in given:
        element, shape = parse_array(given["array"])
        return element * math.prod(shape)
    element = notation.element or dtype_bytes(str(given.get("dtype", "bf16")))
    volume = element * math.prod(problem.need(name) for name, _ in notation.dims)
    sizes = _sizes(problem)
    others = [axis for _, axes in notation.dims for axis in axes if axis not in notation.axes]
    return volume / math.prod(sizes[axis] for axis in others) if split_elsewhere else volume


def _torus_seconds(problem: Problem, *, split_elsewhere: bool) -> float:
    problem.needs("collective")
    notation = parse_collective(problem.given["collective"])
    volume = _volume(problem, notation, split_elsewhere=split_elsewhere)
    sizes = _sizes(problem)
    if all(_wraps(problem, sizes[axis]) for axis in notation.axes):
        return forms.ring_seconds(
            notation.collective, volume, problem.figures.link, axes=len(notation.axes)
        )
    return sum(
        forms.line_seconds(notation.collective, volume, problem.figures.link, sizes[axis])
        for axis in notation.axes
    ) / len(notation.axes)


def unsplit_seconds(problem: Problem) -> float:
    """As if the axes outside the collective did not split the array (the first revision of one answer)."""
    return _torus_seconds(problem, split_elsewhere=False)


def ring_seconds(problem: Problem) -> float:
    """As if the axis wrapped."""
    notation = parse_collective(problem.given["collective"])
    volume = _volume(problem, notation, split_elsewhere=True)
    return forms.ring_seconds(
        notation.collective, volume, problem.figures.link, axes=max(1, len(notation.axes))
    )


def line_seconds(problem: Problem) -> float:
    """As if it did not."""
    notation = parse_collective(problem.given["collective"])
    volume = _volume(problem, notation, split_elsewhere=True)
    size = _sizes(problem)[notation.axes[0]]
    return forms.line_seconds(notation.collective, volume, problem.figures.link, size)


def _switch_seconds(problem: Problem) -> float:
    problem.needs("collective", "n")
    figures, size = problem.figures, int(problem.given["n"])
    notation = parse_collective(problem.given["collective"])
    volume = _volume(problem, notation, split_elsewhere=True)
    if size <= figures.node:
        return forms.switch_seconds(notation.collective, volume, figures.link, size)
    nodes = size // figures.node
    if notation.collective == "AllToAll":
        return volume * (nodes - 1) / nodes**2 / figures.node_egress
    share = forms.RING_FACTORS[notation.collective]
    return (
        share
        * volume
        / forms.tree_bandwidth([(figures.link, figures.node), (figures.node_egress, nodes)])
    )


def approximate_seconds(problem: Problem) -> float:
    """Without the (n - 1) / n."""
    notation = parse_collective(problem.given["collective"])
    volume = _volume(problem, notation, split_elsewhere=True)
    far = int(problem.given["n"]) > problem.figures.node
    port = problem.figures.node_egress if far else problem.figures.link
    return forms.RING_FACTORS[notation.collective] * volume / port


def measured_seconds(problem: Problem) -> float:
    """Links as busy as the best that large collectives are seen to reach."""
    return seconds(problem) / forms.REACHED_SHARE


def relative_seconds(problem: Problem) -> float:
    notation = parse_collective(problem.given["collective"])
    return forms.RING_FACTORS[notation.collective] / float(problem.given.get("n_axes", 1))


def time_formula(problem: Problem) -> Symbolic:
    notation = parse_collective(problem.given["collective"])

    def function(B: float, W: float, N: float) -> float:
        return forms.switch_seconds(notation.collective, B, W, int(N))

    text = {"AllToAll": "B (N - 1) / (W N^2)", "AllReduce": "2 B (N - 1) / (W N)"}
    return Symbolic(text.get(notation.collective, "B (N - 1) / (W N)"), ("B", "W", "N"), function)


def slowdown(problem: Problem) -> float:
    """Of an all-to-all, from the first number of nodes to the second."""
    problem.needs("nodes")
    figures = problem.figures
    near, far = (
        forms.all_to_all_seconds(
            1.0, port=figures.link, node=figures.node, node_egress=figures.node_egress, nodes=nodes
        )
        for nodes in problem.given["nodes"]
    )
    return far / near


def _levels(problem: Problem) -> dict[str, tuple[float, int]]:
    """A SuperPOD's levels: GPUs of a node, nodes of a unit, units."""
    figures, devices = problem.figures, int(problem.given.get("n", problem.given.get("n_chips", 0)))
    nodes = devices // figures.node
    levels = {"node": (figures.link, min(devices, figures.node))}
    levels["leaf"] = (figures.node_egress, min(nodes, SUPERPOD_UNIT))
    levels["spine"] = (SUPERPOD_UNIT_EGRESS, nodes // SUPERPOD_UNIT)
    return {name: level for name, level in levels.items() if level[1] > 1}


def effective_bandwidth(problem: Problem) -> float:
    return forms.tree_bandwidth(list(_levels(problem).values()))


def level_bandwidths(problem: Problem) -> Mapping[str, float]:
    return {name: forms.level_bandwidth(*level) for name, level in _levels(problem).items()}


def _inner_split(problem: Problem, *, beyond_node: bool) -> Symbolic:
    """An all-gather of bf16[D, F] over the outer axis, as a function of the inner one."""
    node, egress = problem.figures.node, problem.figures.node_egress
    nodes = int(problem.need("n")) // node

    def function(D: float, F: float, Y: float) -> float:
        return forms.inner_sharded_seconds(
            2 * D * F, int(Y), node=node, nodes=nodes, node_egress=egress
        )

    if beyond_node:
        text = f"2 D F / (Y {egress / node:.3g})"
        return Symbolic(text, ("D", "F", "Y"), function, least=node + 1)
    text = f"2 D F {nodes - 1} / ({nodes} {egress:.3g})"
    return Symbolic(text, ("D", "F", "Y"), function, most=node)


def inner_in_node(problem: Problem) -> Symbolic:
    return _inner_split(problem, beyond_node=False)


def inner_beyond_node(problem: Problem) -> Symbolic:
    return _inner_split(problem, beyond_node=True)


RULES: Mapping[str, Rule] = {
    "time_s": seconds,
    "time_s_if_sharded": seconds,
    "time_s_snapshot": unsplit_seconds,
    "time_s_ideal_ring": ring_seconds,
    "time_s_no_wrap": line_seconds,
    "time_s_approx": approximate_seconds,
    "measured_s": measured_seconds,
    "time_over_V_per_W": relative_seconds,
    "time_formula": time_formula,
    "slowdown_at_least": slowdown,
    "effective_bw": effective_bandwidth,
    "levels": level_bandwidths,
    "Y_le_8": inner_in_node,
    "Y_gt_8": inner_beyond_node,
    "bound": bound,
}
