"""Chips are found under the names that JAX gives them, with peaks that agree with each other."""

import pytest

from jaxscale.hardware import CHIPS, find_chip


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        # Spellings from JAX's own TPU table and from nvidia-smi, which XLA passes on.
        ("TPU v3", "TPU v3"),
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5e", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v5p", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("TPU v6e", "TPU v6e"),
        ("TPU7x", "TPU v7x"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H800", "H800"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("nvidia h200", "H200"),
    ],
)
def test_each_spelling_of_jax_finds_its_chip(device_kind: str, name: str) -> None:
    chip = find_chip(device_kind)
    assert chip is not None
    assert chip.name == name


@pytest.mark.parametrize(
    "device_kind",
    # Other boards of the same families have other clocks: a wrong peak is worse than a measured one.
    ["cpu", "", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "TPU v4 lite", "TPU v2"],
)
def test_a_board_with_another_peak_is_not_mistaken_for_one_we_know(device_kind: str) -> None:
    assert find_chip(device_kind) is None


def test_no_spelling_belongs_to_two_chips() -> None:
    for kind in ("TPU v5", "TPU v5 lite", "NVIDIA B200", "NVIDIA GB200", "NVIDIA H200"):
        owners = [chip for chip in CHIPS if find_chip(kind) is chip]
        assert len(owners) == 1


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_operational_intensity_is_that_of_a_real_accelerator(chip) -> None:
    """FLOPs per byte of memory traffic at which a matmul stops being bound by bandwidth.

    How to Scale Your Model gives 240 for v5e, 300 for H100 and 281 for B200; every chip since 2020 is between
    130 (A100 with 2 TB/s: 156) and 620 (v6e: 560). A unit slip of 2 (sparsity, or per chip for per device) in
    one of the two numbers of most of them, or of 1000 in any, leaves this band.
    """
    assert 130 < chip.peak_flops["bfloat16"] / chip.hbm_bandwidth < 620


@pytest.mark.parametrize(
    ("device_kind", "bfloat16"),
    # What the runs that publish MFU divide by; Ironwood's 2307e12 is per chip of two JAX devices.
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("TPU v6e", 918e12),
        ("TPU v5p", 459e12),
        ("TPU7x", 1153.5e12),
    ],
)
def test_peak_is_the_one_that_published_utilizations_use(device_kind: str, bfloat16: float) -> None:
    chip = find_chip(device_kind)
    assert chip is not None
    assert chip.peak_flops["bfloat16"] == pytest.approx(bfloat16, rel=1e-3)
