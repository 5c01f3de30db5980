"""`given.hw`, `n_chips`, `topology`, `slices`, `nodes` -> the catalogue's cluster."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxscale.errors import UserError
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.hardware.cluster import Cluster
from jaxscale.hardware.gpu import GpuFamily
from jaxscale.hardware.gpu_families import GPU_FAMILIES
from jaxscale.hardware.tpu import FAMILIES, TpuFamily
from jaxscale.hardware.tpu_shapes import shape_text
from planner_truth.cases import Case, Unsupported
from planner_truth.meshes import given_mesh

TPUS: Mapping[str, TpuFamily] = {family.name: family for family in FAMILIES}
# Spellings in print -> the catalogue's name, the more special first.
_GPUS = (
    (r"a100\W?(sxm\d?\W?)?_?40|40.?gb.*a100", "a100-40"),
    (r"a100", "a100"),
    (r"gb200", "gb200"),
    (r"b200", "b200"),
    (r"h200", "h200"),
    (r"h800", "h800"),
    (r"h100", "h100"),
)
_TPU_NAMES = ((r"ironwood|tpu7x", "v7x"), (r"trillium", "v6e"), (r"v5.?lite", "v5e"))
# Machines that a source names without saying so in `hw`.
_MACHINES = ((r"gpu/a3/|\ba3\b", "a3-highgpu-8g"), (r"\ba3.?mega", "a3-megagpu-8g"))


# Systems that a paper's measurements were made on, where a case names no hardware.
_HOMES = (
    (r"narayanan|korthikanti|mt-nlg", "selene"),
    (r"bigscience|bloom", "jean_zay"),
    (r"torchtitan", "torchtitan_grand_teton"),
    (r"deepseek-v3", "h800"),
)


def _home(source: str) -> str:
    return next((name for pattern, name in _HOMES if re.search(pattern, source.lower())), "")


def tpu_family(text: str) -> TpuFamily | None:
    """The TPU generation that a text such as `tpu.v4p`, `tpu.v3-256` or `v6e DCN` names."""
    lowered = text.lower()
    nicknamed = next((name for words, name in _TPU_NAMES if re.search(words, lowered)), None)
    match = re.search(r"(?<![a-z0-9])(v\d[a-z]?)", lowered)
    name = nicknamed or (match.group(1) if match else "")
    return TPUS.get({"v4p": "v4", "v7": "v7x"}.get(name, name))


def gpu_family(text: str, source: str = "") -> GpuFamily | None:
    """The published system a text names (`selene A100_80`), else the machine of its source, else the chip's family."""
    words = re.findall(r"[a-z0-9_.-]+", text.lower())
    systems = [word for word in words if word in GPU_FAMILIES and GPU_FAMILIES[word].whole_nodes]
    if systems:
        return GPU_FAMILIES[systems[0]]
    chips = [name for pattern, name in _GPUS if re.search(pattern, text.lower())]
    for pattern, machine in _MACHINES:
        same_chip = chips and GPU_FAMILIES[machine].chip == GPU_FAMILIES[chips[0]].chip
        if same_chip and re.search(pattern, source.lower()):
            return GPU_FAMILIES[machine]
    return GPU_FAMILIES[chips[0]] if chips else None


def num_chips(case: Case) -> int:
    """Chips, from whichever field says so. Raises Unsupported."""
    given = case.given
    topology = math.prod(given["topology"]) * given.get("slices", 1) if "topology" in given else 0
    named = _number(given.get("n_chips")) or topology or _chips_of_name(str(given.get("hw", "")))
    if named:
        return named
    if "jax_devices" in given:
        return int(given["jax_devices"]) // _devices_per_chip(given.get("hw", ""))
    if "nodes" in given and isinstance(given["nodes"], int):
        family = gpu_family(str(given.get("hw", "")))
        return given["nodes"] * (family.node if family else 8)
    product = math.prod(given_mesh(given).values())
    if product > 1:
        return product
    raise Unsupported("no number of chips is given")


def _chips_of_name(hw: str) -> int:
    """`v3-256`, `v5p-1024`: names of generations with two cores a chip count cores."""
    family, match = tpu_family(hw), re.search(r"v\d[a-z]*-(\d+)", hw.lower())
    return int(match.group(1)) // family.cores if family and match else 0


def clusters_of(case: Case) -> Iterator[Cluster]:
    """What a case may mean: every torus with that many chips, the most cube-like first. Raises Unsupported."""
    hw = str(case.given.get("hw", ""))
    chips = num_chips(case)
    tpu = tpu_family(hw)
    if tpu is not None:
        yield from _slices(case, tpu, chips)
        return
    gpu = gpu_family(hw or _home(case.source), case.source)
    if gpu is None:
        known = ", ".join([*TPUS, *(name for _, name in _GPUS)])
        raise Unsupported(f"no cluster of the catalogue is meant by hw {hw!r}; it has {known}")
    cluster = _parsed(gpu_name(gpu, chips, _number(case.given.get("nodes"))))
    yield _with_egress(cluster, case.given.get("node_egress"))


def _with_egress(cluster: Cluster, egress: Any) -> Cluster:
    """egress: bytes/s that a node sends, of all its GPUs together, where a case says so."""
    if not egress or not cluster.dims or not cluster.dims[-1].slow:
        return cluster
    *inner, network = cluster.dims
    each = float(egress) / math.prod(dim.size for dim in inner)
    return replace(cluster, dims=(*inner, replace(network, bandwidth=each)))


def gpu_name(family: GpuFamily, chips: int, nodes: int = 0) -> str:
    """nodes: as many as are said, each with fewer GPUs than the family's have; 0: as few as it takes."""
    node = _per_node(family, chips, nodes)
    if chips < node:
        return f"{family.name}:{chips}"
    if chips % node:
        raise Unsupported(f"{chips} GPUs are no whole number of nodes of {node}")
    count = chips // node
    whole = family.whole_nodes and node == family.node
    return f"{family.name}:{count}" if whole else f"{family.name}:{node}x{count}"


def _per_node(family: GpuFamily, chips: int, nodes: int) -> int:
    """GPUs of a node. Of a rack of hosts (GB200 NVL72) as many hosts as divide them: 64 of 72 for 256 GPUs."""
    if nodes and chips % nodes == 0 and chips // nodes <= family.node:
        return chips // nodes
    if chips <= family.node or chips % family.node == 0 or family.per_host == family.node:
        return family.node
    whole = range(family.node, 0, -family.per_host)
    return next((size for size in whole if chips % size == 0), family.node)


def _slices(case: Case, family: TpuFamily, chips: int) -> Iterator[Cluster]:
    slices = int(case.given.get("slices", case.given.get("pods", 0))) or _least_slices(
        family, chips
    )
    named = case.given.get("topology")
    shapes = [tuple(named)] if named else list(family.rule.shapes(chips // slices))
    if not shapes:
        raise Unsupported(f"no {family.name} slice has {chips // slices} chips")
    for shape in shapes:
        yield _parsed(f"{family.name}:{shape_text(shape)}*{slices}")


def _least_slices(family: TpuFamily, chips: int) -> int:
    slices = -(-chips // (family.rule.max_chips or family.rule.largest))
    while chips % slices:
        slices += 1
    return slices


def _parsed(name: str) -> Cluster:
    try:
        return parse_cluster(name.removesuffix("*1"))
    except UserError as error:
        raise Unsupported(str(error)) from error


def _number(value: Any) -> int:
    """Chips in `n_chips`, which may be words: `v3-256 (256 cores = 128 chips)`."""
    if isinstance(value, int | float):
        return int(value)
    text = str(value or "")
    match = re.search(r"(\d+) chips", text) or re.search(r"(\d+)", text)
    return int(match.group(1)) if match else 0


def _devices_per_chip(hw: str) -> int:
    family = tpu_family(str(hw))
    return family.devices_per_chip if family else 1
