"""Utilization against a published run, and peaks of real and of pretended devices."""

from types import SimpleNamespace
from typing import cast

import jax
import pytest

from jaxscale.telemetry.mfu import Peak, mfu
from jaxscale.telemetry.peak import device_peak


def test_agrees_with_the_paper_that_defined_it() -> None:
    """PaLM, section 4.1: 540B on 6144 TPU v4, 238.3K tokens/s: 46.2 % MFU, 45.7 % without attention.

    Without attention: 6 x 540.35e9 FLOPs per token. The paper's figures have three digits.
    """
    peak = Peak(275e12, "TPU v4")
    reached = mfu(
        model_flops_per_token=6 * 540.35e9, tokens_per_second=238_300, num_devices=6144, peak=peak
    )
    assert reached == pytest.approx(0.457, abs=0.0005)


def test_cpu_devices_share_one_machine() -> None:
    """Asking JAX for eight CPU devices makes none of them faster: the same rate is the same MFU."""
    machine = Peak(1e11, "measured", scope="machine")
    on_one, on_eight = (
        mfu(model_flops_per_token=1e6, tokens_per_second=5e4, num_devices=n, peak=machine)
        for n in (1, 8)
    )
    assert on_one == on_eight == pytest.approx(0.5)


def test_cpu_peak_is_measured_once_and_says_so() -> None:
    device = jax.devices()[0]
    peak = device_peak(device, "float32")
    assert peak.scope == "machine"
    assert peak.provenance.startswith("measured: 1024^3 float32 matmul, ")
    # From one slow core without vector units to a large server; a slip in FLOPs or seconds is 1e3 or more.
    assert 1e9 < peak.flops_per_second < 1e14
    assert device_peak(device, "float32") is peak
    assert peak.provenance in peak.convention()


def test_known_chip_answers_from_its_datasheet_without_being_asked() -> None:
    # Not a jax.Device: running anything on it would fail, which is the point.
    h200 = cast("jax.Device", SimpleNamespace(device_kind="NVIDIA H200", platform="gpu"))
    peak = device_peak(h200, "bfloat16")
    assert peak.total(8) == pytest.approx(8 * 989e12, rel=1e-3)
    assert "datasheet" in peak.provenance
