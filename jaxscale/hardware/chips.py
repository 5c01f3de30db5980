"""Accelerators: peak arithmetic, memory and bandwidth, each with where the number was read.

All figures are for one *JAX device*, which is not always one chip: TPU v4 and v5p fuse two cores into one
device, TPU7x shows each chip as two. FLOP/s are dense (no structured sparsity); memory is GB or GiB
as the source prints it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Chip:
    """One accelerator as JAX sees it.

    `kind_patterns` are regular expressions that match the whole of `jax.Device.device_kind`, whatever the case.
    `peak_flops` maps a dtype name to FLOP/s of one device; `hbm_bandwidth` is bytes/s. `hbm_bytes` is the memory as it
    is sold; what a program may take of it is `Cluster.usable_hbm`.
    """

    name: str
    kind_patterns: tuple[str, ...]
    peak_flops: Mapping[str, float]
    hbm_bytes: float
    hbm_bandwidth: float
    source: str
    multiprocessors: int = 0


def _tpu_peak(bfloat16: float, **narrow: float) -> Mapping[str, float]:
    """TPU peaks: at JAX's default matmul precision float32 operands are multiplied in one bfloat16 pass."""
    return MappingProxyType({"bfloat16": bfloat16, "float32": bfloat16, **narrow})


def _gpu_peak(bfloat16: float, *, float32: float, **narrow: float) -> Mapping[str, float]:
    """GPU peaks: at JAX's default matmul precision float32 operands are multiplied as TF32."""
    return MappingProxyType(
        {"bfloat16": bfloat16, "float16": bfloat16, "float32": float32, **narrow}
    )


TPU_V3 = Chip(
    name="TPU v3",
    kind_patterns=(r"TPU v3",),
    # Half a chip: 123e12 bfloat16, 32 GiB and 900 GB/s a chip, whose two cores JAX shows as two devices.
    peak_flops=_tpu_peak(123e12 / 2),
    hbm_bytes=16 * 2**30,
    hbm_bandwidth=0.9e12 / 2,
    source="Cloud TPU v3 system architecture page, per chip, divided by its two JAX devices; "
    "How to Scale Your Model, 'TPU specs', has 140e12 a chip",
)
TPU_V4 = Chip(
    name="TPU v4",
    kind_patterns=(r"TPU v4",),
    peak_flops=_tpu_peak(275e12, int8=275e12),
    hbm_bytes=32e9,
    hbm_bandwidth=1.2e12,
    source="Cloud TPU v4 system architecture page; How to Scale Your Model, 'TPU specs'",
)
TPU_V5E = Chip(
    name="TPU v5e",
    kind_patterns=(r"TPU v5 ?lite", r"TPU v5e"),
    peak_flops=_tpu_peak(197e12, int8=394e12),
    hbm_bytes=16e9,
    hbm_bandwidth=0.81e12,
    source="Cloud TPU v5e system architecture page; How to Scale Your Model, 'TPU specs'",
)
TPU_V5P = Chip(
    name="TPU v5p",
    kind_patterns=(r"TPU v5", r"TPU v5p"),
    peak_flops=_tpu_peak(459e12, int8=918e12),
    hbm_bytes=96e9,
    hbm_bandwidth=2.765e12,
    source="Cloud TPU comparison table on the TPU7x page (2765 GB/s; 95 GiB, which programs see); "
    "How to Scale Your Model, 'TPU specs' (96 GB)",
)
TPU_V6E = Chip(
    name="TPU v6e",
    kind_patterns=(r"TPU v6 ?lite", r"TPU v6e"),
    peak_flops=_tpu_peak(918e12, int8=1836e12),
    hbm_bytes=32 * 2**30,
    hbm_bandwidth=1.638e12,
    source="Cloud TPU comparison table on the TPU7x page; MaxText divides by the same 918e12",
)
TPU_V7X = Chip(
    name="TPU v7x",
    kind_patterns=(r"TPU ?v?7x",),
    # Half a chip: 2307e12 bfloat16, 192 GiB and 7380 GB/s a chip, which JAX shows as two devices.
    peak_flops=_tpu_peak(2307e12 / 2, float8_e4m3fn=4614e12 / 2, float8_e5m2=4614e12 / 2),
    hbm_bytes=96 * 2**30,
    hbm_bandwidth=7.38e12 / 2,
    source="Cloud TPU TPU7x (Ironwood) page, per chip, divided by its two JAX devices",
)
A100_40GB = Chip(
    name="A100 40GB",
    kind_patterns=(r"(NVIDIA )?A100-(SXM4|PCIE)-40GB",),
    peak_flops=_gpu_peak(312e12, float32=156e12, int8=624e12),
    hbm_bytes=40e9,
    hbm_bandwidth=1.555e12,
    source="NVIDIA A100 Tensor Core GPU datasheet",
    multiprocessors=108,
)
A100_80GB = Chip(
    name="A100 80GB",
    kind_patterns=(r"(NVIDIA )?A100-SXM4-80GB", r"(NVIDIA )?A100[- ]80GB[- ]PCIe"),
    peak_flops=_gpu_peak(312e12, float32=156e12, int8=624e12),
    hbm_bytes=80e9,
    hbm_bandwidth=2.0e12,
    source="NVIDIA A100 Tensor Core GPU datasheet (SXM 2039 GB/s, PCIe 1935 GB/s)",
    multiprocessors=108,
)
# The PCIe and NVL boards have other clocks and peaks: they deliberately match nothing here.
H100_SXM = Chip(
    name="H100 SXM",
    kind_patterns=(r"(NVIDIA )?H100 80GB HBM3", r"(NVIDIA )?H100[- ]SXM5?.*"),
    peak_flops=_gpu_peak(
        989.4e12, float32=494.7e12, int8=1979e12, float8_e4m3fn=1979e12, float8_e5m2=1979e12
    ),
    hbm_bytes=80e9,
    hbm_bandwidth=3.35e12,
    source="NVIDIA H100 Tensor Core GPU datasheet, SXM5, halved from the figures with sparsity",
    multiprocessors=132,
)
H100_96GB = Chip(
    name="H100 96GB HBM2e",
    kind_patterns=(),  # Reports itself as `NVIDIA H100`, which says nothing of clocks or power.
    peak_flops=H100_SXM.peak_flops,
    hbm_bytes=96e9,
    hbm_bandwidth=2.4e12,
    source="torchtitan benchmarks/llama3_h100_202412_torchtitan.md: 96 GB HBM2e at 2.4 TB/s, power capped at 500 W; "
    "peak of the SXM5 board, as torchtitan divides by it",
    multiprocessors=132,
)
H800 = Chip(
    name="H800",
    kind_patterns=(r"(NVIDIA )?H800",),
    peak_flops=_gpu_peak(
        989.4e12, float32=494.7e12, int8=1979e12, float8_e4m3fn=1979e12, float8_e5m2=1979e12
    ),
    hbm_bytes=80e9,
    hbm_bandwidth=3.35e12,
    source="H100 SXM with a slower NVLink; no primary source prints its dense peaks (How to Scale Your Model has "
    "1.513e15 for float8, which is the PCIe board's)",
    multiprocessors=132,
)
H200 = Chip(
    name="H200",
    kind_patterns=(r"(NVIDIA )?H200( SXM)?",),
    peak_flops=_gpu_peak(
        989.4e12, float32=494.7e12, int8=1979e12, float8_e4m3fn=1979e12, float8_e5m2=1979e12
    ),
    hbm_bytes=141e9,
    hbm_bandwidth=4.8e12,
    source="NVIDIA H200 Tensor Core GPU datasheet, SXM, halved from the figures with sparsity",
    multiprocessors=132,
)
B200 = Chip(
    name="B200",
    kind_patterns=(r"(NVIDIA )?B200( SXM)?",),
    peak_flops=_gpu_peak(
        2250e12, float32=1125e12, int8=4500e12, float8_e4m3fn=4500e12, float8_e5m2=4500e12
    ),
    hbm_bytes=192e9,
    hbm_bandwidth=8.0e12,
    source="NVIDIA HGX B200 datasheet, one of eight, halved from the figures with sparsity; "
    "memory as in How to Scale Your Model, 'GPU specs'",
    multiprocessors=148,
)
GB200 = Chip(
    name="GB200",
    kind_patterns=(r"(NVIDIA )?GB200( NVL72)?",),
    peak_flops=_gpu_peak(
        2500e12, float32=1250e12, int8=5000e12, float8_e4m3fn=5000e12, float8_e5m2=5000e12
    ),
    hbm_bytes=186e9,
    hbm_bandwidth=8.0e12,
    source="NVIDIA GB200 NVL72 datasheet, one of 72, halved from the figures with sparsity "
    "(360 PFLOP/s bfloat16, 13.4 TB, 576 TB/s); How to Scale Your Model uses 2250e12 and 192 GB",
    multiprocessors=148,
)

CHIPS = (
    TPU_V3, TPU_V4, TPU_V5E, TPU_V5P, TPU_V6E, TPU_V7X,
    A100_40GB, A100_80GB, H100_SXM, H100_96GB, H800, H200, B200, GB200,
)  # fmt: skip


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX spells `device_kind`, or None where the table does not know it."""
    for chip in CHIPS:
        if any(re.fullmatch(p, device_kind, re.IGNORECASE) for p in chip.kind_patterns):
            return chip
    return None
