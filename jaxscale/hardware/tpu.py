"""TPU slices: tori of chips, joined over the data center's network.

`v5p:4x4x8` is one slice, `v5e:16x16*4` four. Bandwidths are per JAX device and one way.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

from jaxscale.errors import UserError
from jaxscale.hardware.chips import TPU_V3, TPU_V4, TPU_V5E, TPU_V5P, TPU_V6E, TPU_V7X, Chip
from jaxscale.hardware.cluster import Cluster, Dim, Wiring
from jaxscale.hardware.gpu import growing_counts
from jaxscale.hardware.tpu_shapes import Shape, ShapeRule, check_shape, shape_text

GIB = 2**30
MAX_SLICES = 256
HOP_LATENCY = 1e-6
DCN_LATENCY = 1e-5
_BOOK = "How to Scale Your Model, 'TPUs' (tpus.md)"
_LATENCY = "latency: about 1 us a hop, " + _BOOK
_DCN_LATENCY = "latency: our assumption, no source prints one"
_PAGE = "Cloud TPU {} system architecture page"


@dataclass(frozen=True)
class TpuFamily:
    """One generation. link, dcn, host: bytes/s one way of a chip, over one link, to other slices, to its host.

    usable: bytes of one JAX device that the compiler lets a program take (libtpu of JAX 0.12, compiled ahead of time,
    names them when memory runs out; v3: the same error in published logs; v4: two cores of 15.25 GiB).
    between: bytes/s one way between the two devices of a chip. cores: TensorCores a chip, as names like v5p-128 count.
    """

    name: str
    chip: Chip
    rule: ShapeRule
    link: float
    link_source: str
    dcn: float
    dcn_source: str
    usable: float
    chips_per_host: int
    host: float
    cores: int = 1
    devices_per_chip: int = 1
    between: float = 0.0
    between_source: str = ""


_V3_SHAPES = ((2, 2), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32))
_SQUARE_SHAPES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_BOOK_LINK = _BOOK + "; Google's page prints {} GB/s both ways a chip, which is {} one way a link"

FAMILIES = (
    TpuFamily(
        "v3", TPU_V3, ShapeRule(_V3_SHAPES, wrap=32), 100e9, _BOOK,
        25e9 / 4, _BOOK + ": 25 GB/s a host", 15.48 * GIB, 4, 16e9,
        cores=2, devices_per_chip=2, between=450e9,
        between_source="our assumption: the memory bandwidth of one core",
    ),
    TpuFamily(
        "v4", TPU_V4, ShapeRule(_SMALL, cube=4, max_chips=4096), 45e9, _BOOK,
        25e9 / 4, _BOOK + ": 25 GB/s a host", 30.5 * GIB, 4, 16e9, cores=2,
    ),
    TpuFamily(
        "v5e", TPU_V5E, ShapeRule(_SQUARE_SHAPES, wrap=16), 45e9, _BOOK_LINK.format(400, 50),
        3.125e9, _BOOK + "; 6.4 Tb/s a pod, " + _PAGE.format("v5e"), 15.75 * GIB, 8, 16e9,
    ),
    TpuFamily(
        "v5p", TPU_V5P, ShapeRule(_SMALL, cube=4, max_chips=8960, schedulable=6144),
        90e9, _BOOK_LINK.format(1200, 100),
        6.25e9, _PAGE.format("v5p") + ": 50 Gb/s a chip", 95.73 * GIB, 4, 16e9, cores=2,
    ),
    TpuFamily(
        "v6e", TPU_V6E, ShapeRule(_SQUARE_SHAPES, wrap=16), 90e9, _BOOK_LINK.format(800, 100),
        12.5e9, _PAGE.format("v6e") + ": 100 Gb/s a chip", 31.24 * GIB, 8, 32e9,
    ),
    TpuFamily(
        "v7x", TPU_V7X, ShapeRule(((1, 1, 1), *_SMALL), cube=4, max_chips=9216),
        90e9, "MaxText's 12,800 FLOPs a byte of one axis; Google's page prints 1200 GB/s both ways a chip, 100 one way"
        " a link; shared by the two devices of the chip",
        12.5e9, _PAGE.format("TPU7x") + ": 100 Gb/s a chip, shared by its two devices", 94.74 * GIB,
        4, 32e9, cores=2, devices_per_chip=2, between=6 * 90e9,
        between_source=_PAGE.format("TPU7x") + ": six times a link",
    ),
)  # fmt: skip

TPU_FAMILIES = MappingProxyType({family.name: family for family in FAMILIES})


def tpu_cluster(family: TpuFamily, shape: Shape, num_slices: int = 1) -> Cluster:
    """`num_slices` slices of `shape` chips. Raises UserError where no such slice is made, naming those that are."""
    name = tpu_name(family, shape, num_slices)
    check_shape(name, family.name, shape, family.rule)
    if not 1 <= num_slices <= MAX_SLICES:
        raise UserError(f"{name}: 1 to {MAX_SLICES} slices, not {num_slices:,}")
    return Cluster(
        name=name,
        kind="tpu",
        chip=family.chip,
        dims=_dims(family, shape, num_slices),
        usable_hbm=family.usable,
        host_bandwidth=family.host / family.devices_per_chip,
        devices_per_host=min(math.prod(shape), family.chips_per_host) * family.devices_per_chip,
        devices_per_chip=family.devices_per_chip,
        family=family.name,
    )


def tpu_name(family: TpuFamily, shape: Shape, num_slices: int = 1) -> str:
    slices = f"*{num_slices}" if num_slices != 1 else ""
    return f"{family.name}:{shape_text(shape)}{slices}"


def tpu_sizes(family: TpuFamily) -> Iterator[tuple[Shape, int]]:
    """(shape, slices) of clusters, growing: the most cube-like slice of each size, then several of the largest.

    Sizes grow as those of GPU clusters do: of 96 numbers of cubes that a v5p slice can have, 12 are offered.
    """
    rule = family.rule
    counts = [count for count in rule.counts() if count <= rule.largest]
    unit = rule.cube**rule.num_dims if rule.cube else 1
    offered = {rule.largest, *growing_counts(rule.largest)} | {
        unit * n for n in growing_counts(rule.largest)
    }
    yield from ((rule.best(count), 1) for count in counts if count in offered)
    yield from ((rule.best(rule.largest), k) for k in growing_counts(MAX_SLICES) if k > 1)


def _dims(family: TpuFamily, shape: Shape, num_slices: int) -> tuple[Dim, ...]:
    """Innermost first: the devices of a chip, the torus, the slices. Dims of size 1 are left out."""
    share = family.devices_per_chip
    dims = [
        Dim("chip", share, "on-chip", "switch", family.between, HOP_LATENCY, family.between_source)
    ]
    for name, size in zip("xyz", shape, strict=False):
        wiring: Wiring = "ring" if family.rule.wraps(size, shape) else "line"
        source = f"{family.link_source}; {_LATENCY}"
        dims.append(Dim(name, size, "ICI", wiring, family.link / share, HOP_LATENCY, source))
    dcn = f"{family.dcn_source}; {_DCN_LATENCY}"
    dims.append(
        Dim("slices", num_slices, "DCN", "switch", family.dcn / share, DCN_LATENCY, dcn, slow=True)
    )
    return tuple(dim for dim in dims if dim.size > 1)
