"""Model FLOPs utilization: the formula and its convention. No JAX; peaks come from `telemetry.peak`."""

from dataclasses import dataclass
from typing import Literal

MFU_CONVENTION = (
    "MFU = model FLOPs / (time x peak). Recomputation is excluded; "
    "causal attention is counted once (half the square)."
)


@dataclass(frozen=True)
class Peak:
    """The arithmetic ceiling that utilization is measured against, and where it comes from.

    `scope` says what `flops_per_second` is the peak of: one JAX device, or the whole machine, which
    JAX's CPU devices share however many of them were asked for.
    """

    flops_per_second: float
    provenance: str
    scope: Literal["device", "machine"] = "device"

    def total(self, num_devices: int) -> float:
        """FLOP/s of `num_devices` devices together; CPU devices are taken to share one machine."""
        return self.flops_per_second * (num_devices if self.scope == "device" else 1)

    def convention(self) -> str:
        """What an MFU computed with this peak means, in a sentence or two."""
        return f"{MFU_CONVENTION} Peak = {self.flops_per_second:.4g} FLOP/s per {self.scope} ({self.provenance})."


def mfu(
    *, model_flops_per_token: float, tokens_per_second: float, num_devices: int, peak: Peak
) -> float:
    """Fraction of the peak that went into the model's own arithmetic (PaLM, appendix B).

    `model_flops_per_token` counts forward and backward, without recomputation; `tokens_per_second` is
    over all `num_devices` devices.
    """
    return model_flops_per_token * tokens_per_second / peak.total(num_devices)
