"""Hardware figures of a worked problem: the file's own table where `given.hw` points into it, else our catalogue's.

Worked problems carry their constants with them (one book prints 96 GB of HBM where a page prints 95 GiB): the figures
that a problem is stated in are part of what is given.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxscale.hardware.gpu import GpuFamily
from jaxscale.hardware.tpu import HOP_LATENCY, TpuFamily
from planner_truth.cases import Case, CaseFile, Unsupported
from planner_truth.clusters import gpu_family, tpu_family

# Dtypes as printed -> keys of the file's table and of the catalogue's.
DTYPES = {
    "bf16": "bfloat16", "fp16": "float16", "fp8": "float8_e4m3fn", "int8": "int8", "int4": "int4",
    "fp32": "float32", "f32": "float32", "float32": "float32", "float8": "float8_e4m3fn",
    "bfloat16": "bfloat16", "float16": "float16",
}  # fmt: skip
ELEMENT_BYTES = {
    "bfloat16": 2.0, "float16": 2.0, "float8_e4m3fn": 1.0, "int8": 1.0, "int4": 0.5, "float32": 4.0,
}  # fmt: skip
# DGX SuperPOD, How to Scale Your Model, 'GPUs': nodes of a scalable unit, and egress of one to the spine.
SUPERPOD_UNIT = 32
SUPERPOD_UNIT_EGRESS = 12.8e12


@dataclass(frozen=True)
class Figures:
    """Of one chip. link: bytes/s one way, of a torus axis or of its switch port; dcn: of its share of the slow network.

    node: chips that share the fast switch (0: a torus), node_egress: bytes/s of all of them. host_chips: chips a host.
    wrap: length of an axis that closes into a ring (0: any multiple of four).
    """

    flops: Mapping[str, float]
    hbm_bytes: float
    hbm_bandwidth: float
    link: float
    dcn: float = 0.0
    torus_axes: int = 0
    pod: tuple[int, ...] = ()
    host_chips: int = 8
    wrap: int = 0
    node: int = 0
    node_egress: float = 0.0
    pcie: float = 0.0
    hop: float = HOP_LATENCY

    @property
    def peak(self) -> float:
        return self.flops["bfloat16"]

    @property
    def intensity(self) -> float:
        """FLOPs a byte of one axis (both directions) or of the switch port."""
        return self.peak / (self.link if self.node else 2 * self.link)

    def wraps(self, size: int) -> bool:
        return size == self.wrap if self.wrap else size % 4 == 0


def figures_of(case: Case, file: CaseFile) -> Figures:
    """Raises Unsupported where `hw` (or `net`) names no chip."""
    return figures_named(str(case.given.get("hw") or case.given.get("net") or ""), file)


def figures_named(hw: str, file: CaseFile) -> Figures:
    tpu, gpu = tpu_family(hw), gpu_family(hw)
    if tpu is not None:
        return _tpu_figures(tpu, _entry(file.hardware.get("tpu", {}), hw))
    if gpu is not None:
        return _gpu_figures(gpu, _entry(file.hardware.get("gpu", {}), hw))
    raise Unsupported(f"no chip is meant by hw {hw!r}")


def _entry(block: Mapping[str, Any], hw: str) -> Mapping[str, Any]:
    """The block that the last part of `tpu.v5p`, or a word of it, names."""
    for word in hw.replace("tpu.", "").replace("gpu.", "").split():
        found = block.get(word) or block.get(word.split("-")[0])
        if isinstance(found, Mapping):
            return found
    return {}


def _tpu_figures(family: TpuFamily, entry: Mapping[str, Any]) -> Figures:
    chip, devices = family.chip, family.devices_per_chip
    peaks = {name: flops * devices for name, flops in chip.peak_flops.items()}
    pod = entry.get("pod") or max(family.rule.small, key=math.prod)
    return Figures(
        flops=peaks | _peaks(entry),
        hbm_bytes=entry.get("hbm_bytes", chip.hbm_bytes * devices),
        hbm_bandwidth=entry.get("hbm_bw", chip.hbm_bandwidth * devices),
        link=entry.get("ici_oneway", family.link),
        dcn=entry.get("dcn_per_chip", family.dcn),
        torus_axes=family.rule.num_dims,
        pod=tuple(pod),
        host_chips=math.prod(entry["host"]) if "host" in entry else family.chips_per_host,
        wrap=family.rule.wrap,
        pcie=entry.get("pcie", family.host),
    )


def _gpu_figures(family: GpuFamily, entry: Mapping[str, Any]) -> Figures:
    chip = family.chip
    return Figures(
        flops={**chip.peak_flops, **_peaks(entry)},
        hbm_bytes=entry.get("hbm_bytes", chip.hbm_bytes),
        hbm_bandwidth=entry.get("hbm_bw", chip.hbm_bandwidth),
        link=entry.get("nvlink_oneway", family.nvlink),
        dcn=family.nic,
        host_chips=family.node,
        node=entry.get("node", family.node),
        node_egress=entry.get("node_egress", family.nic * family.node),
        pcie=family.host_bandwidth,
    )


def _peaks(entry: Mapping[str, Any]) -> dict[str, float]:
    peaks = {DTYPES[name]: float(entry[name]) for name in ("bf16", "int8", "fp8") if name in entry}
    if "bf16_used_in_quiz" in entry:
        peaks["bfloat16"] = entry["bf16_used_in_quiz"]
    if "bfloat16" in peaks:
        peaks["float16"] = peaks["bfloat16"]
    return peaks
