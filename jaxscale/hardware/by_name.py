"""`cpu:8`, `h100:8x4`, `v5p:4x4x8`, `v5e:16x16*4`, `selene:128`, and names of clouds: `v5p-128`, `a3-megagpu-8g*4`.

The grammar is FAMILY:SIZE, with *COUNT for slices; the names of machine types are families whose size counts machines.
"""

import math
import re
from dataclasses import dataclass
from types import MappingProxyType

from jaxscale.config.explain import nearest
from jaxscale.errors import UserError
from jaxscale.hardware.cluster import Cluster
from jaxscale.hardware.cpu import cpu_cluster
from jaxscale.hardware.gpu import GpuFamily, gpu_cluster
from jaxscale.hardware.gpu_families import BY_CHIP, GPU_FAMILIES
from jaxscale.hardware.tpu import TPU_FAMILIES, TpuFamily, tpu_cluster, tpu_name
from jaxscale.hardware.tpu_shapes import Shape, shape_text

ALIASES = MappingProxyType({
    "a100-80": "a100", "a100-80gb": "a100", "a100-40gb": "a100-40", "gb200-nvl72": "gb200",
    "v4p": "v4", "v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "tpu7x": "v7x", "ironwood": "v7x",
})  # fmt: skip
_NAME = re.compile(r"(?P<family>[^:*]+)(?P<colon>:(?P<size>[^*]*))?(?P<star>\*(?P<count>.*))?")
# `v5p-128`, `v5litepod-256`, `tpu7x-4x4x8`.
_CLOUD_TPU = re.compile(r"(?P<family>v\d\w*|tpu7x|trillium|ironwood)-(?P<size>\d+(?:x\d+)*)")


@dataclass(frozen=True)
class Name:
    """A cluster's name in parts. size: what is joined by `x`. count: slices or machines, None where it is not said."""

    text: str
    family: str
    size: tuple[int, ...]
    count: int | None


def cluster_by_name(text: str) -> Cluster:
    """The cluster that `text` names. Raises UserError: what is wrong, what exists, what is nearest."""
    name = _parts(text)
    if name.family == "cpu":
        return cpu_cluster(*_sizes(name, 1, "cpu:8", counted=False))
    if name.family in GPU_FAMILIES:
        return _gpu(name, GPU_FAMILIES[name.family])
    if name.family in TPU_FAMILIES:
        return _tpu(name, TPU_FAMILIES[name.family])
    chips = ["cpu", *TPU_FAMILIES, *(family.name for family in BY_CHIP)]
    systems = [name for name in GPU_FAMILIES if name not in chips]
    hint = nearest(name.family, [*chips, *systems, *ALIASES])
    raise UserError(
        f"{text}: unknown chip {name.family!r}{hint}; there are {', '.join(chips)};"
        f" systems and machine types {', '.join(systems)}; or a file ending in .yaml"
    )


def explain_name(text: str) -> str:
    """One line: what a name stands for, in chips and in jaxscale's spelling. Raises UserError as `cluster_by_name`."""
    cluster = cluster_by_name(text)
    if cluster.kind == "tpu":
        return _explain_tpu(text, cluster)
    nodes = math.prod(dim.size for dim in cluster.dims if dim.slow)
    what = f"{cluster.num_devices:,} {cluster.chip.name}"
    if cluster.kind == "cpu":
        return f"{cluster.name} is {cluster.num_devices} CPU devices of one host"
    each = f"{nodes:,} {'node' if nodes == 1 else 'nodes'} of {cluster.num_devices // nodes}"
    between = [f", {d.network} {d.bandwidth * 8e-9:g} Gb/s a GPU" for d in cluster.dims if d.slow]
    return f"{text.strip()} is {what}, {each}{''.join(between)}: {cluster.name}"


def _explain_tpu(text: str, cluster: Cluster) -> str:
    family = TPU_FAMILIES[cluster.family]
    counts = ""
    cloud = _CLOUD_TPU.match(text.strip().lower())
    if cloud and cloud["size"].isdecimal():
        counts = f" (names count {'cores' if family.cores > 1 else 'chips'})"
    devices = ""
    if cluster.devices_per_chip > 1:
        devices = f", {cluster.num_devices:,} JAX devices"
    chips = f"{cluster.num_chips:,} {'chip' if cluster.num_chips == 1 else 'chips'}"
    return f"{text.strip()} is {chips}{counts}{devices}: {cluster.name}"


def _parts(text: str) -> Name:
    lowered = text.strip().lower().removeprefix("standard_")
    match = _NAME.fullmatch(lowered)
    if match is None:
        raise UserError(
            f"{text!r} names no cluster; for example cpu:8, h100:8x4, v5p:4x4x8, v5e:16x16*4"
        )
    family, size = match["family"], match["size"]
    cloud = _CLOUD_TPU.fullmatch(family)
    if cloud and not match["colon"] and family not in GPU_FAMILIES:
        return _cloud_tpu(text, cloud, _count(text, match["count"]))
    family = ALIASES.get(family, family)
    numbers = _numbers(text, family, size) if match["colon"] else ()
    return Name(text, family, numbers, _count(text, match["count"]))


def _numbers(text: str, family: str, size: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,6}(x\d{1,6})*", size):
        raise UserError(f"{text}: {size!r} is no size; write {_example(family)}")
    return tuple(int(number) for number in size.split("x"))


def _count(text: str, count: str | None) -> int | None:
    if count is not None and not re.fullmatch(r"\d{1,6}", count):
        raise UserError(f"{text}: {count!r} after * is no number of slices or machines")
    return None if count is None else int(count)


def _example(family: str) -> str:
    if family in TPU_FAMILIES:
        shape = TPU_FAMILIES[family].rule.small[-1]
        return f"{family}:{shape_text(shape)} (chips along each dim)"
    if family in GPU_FAMILIES and GPU_FAMILIES[family].whole_nodes:
        return f"{family}:4 (nodes)"
    return "cpu:8" if family == "cpu" else f"{family}:8x4 (GPUs a node x nodes)"


def _sizes(name: Name, most: int, example: str, *, counted: bool) -> tuple[int, ...]:
    """The size, of 1 to `most` numbers. `counted`: whether *COUNT may follow."""
    if not 1 <= len(name.size) <= most or (name.count is not None and not counted):
        raise UserError(f"{name.text}: write {example}")
    return name.size


def _gpu(name: Name, family: GpuFamily) -> Cluster:
    if family.whole_nodes and len(name.size) < 2:
        nodes = name.size[0] if name.size else name.count
        if name.size and name.count is not None:
            raise UserError(f"{name.text}: write {_example(family.name)}")
        return gpu_cluster(family, family.node, 1 if nodes is None else nodes)
    per_node, *nodes_given = _sizes(name, 2, _example(family.name), counted=False)
    return gpu_cluster(family, per_node, nodes_given[0] if nodes_given else 1)


def _tpu(name: Name, family: TpuFamily) -> Cluster:
    if not name.size:
        raise UserError(f"{name.text}: write {_example(family.name)}")
    return tpu_cluster(family, name.size, 1 if name.count is None else name.count)


def _cloud_tpu(text: str, match: re.Match[str], count: int | None) -> Name:
    """`v5p-128` and `tpu7x-128` count TensorCores, two a chip; v5e and v6e have one (Cloud TPU pages; xpk's table)."""
    name = ALIASES.get(match["family"], match["family"])
    numbers = _numbers(text, name, match["size"])
    if len(numbers) > 1 or name not in TPU_FAMILIES:
        return Name(text, name, numbers, count)
    family = TPU_FAMILIES[name]
    return Name(text, name, _shape_of(text, family, numbers[0]), count)


def _shape_of(text: str, family: TpuFamily, number: int) -> Shape:
    cores = family.cores
    shape = None if number % cores else next(family.rule.shapes(number // cores), None)
    if shape is None:
        counts = family.rule.counts()
        below = [n for n in counts if n * cores <= number][-1:]
        above = [n for n in counts if n * cores >= number][:1]
        near = [
            f"{family.name}-{n * cores} ({tpu_name(family, family.rule.best(n))})"
            for n in below + above
        ]
        counted = "TensorCores, two a chip" if cores > 1 else "chips"
        raise UserError(
            f"{text}: no {family.name} slice has {number:,} {counted}; nearest: {' or '.join(near)}"
        )
    return shape
