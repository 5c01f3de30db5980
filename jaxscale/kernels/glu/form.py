"""The two kernels of a gated MLP that are more than a product, and which targets they serve.

up: h = activation(x gate) * (x up), with the sums gate and up beside it. One read of x for two products.
down_gradient: from the gradient of the result, that of h in one product, and in its epilogue, from gate and up, those
of both sums and h itself, which the weight gradient of `down` needs and which therefore is never kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxscale.kernels.matmul.form import gpu_reason, tpu_reason
from jaxscale.kernels.registry import Implementation

Part = Literal["up", "down_gradient"]


@dataclass(frozen=True)
class GatedProduct:
    """Rows m of this device, width n of the hidden layer (this device's part), width k of the residual stream."""

    m: int
    n: int
    k: int
    dtype: str
    layout: Part

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"m": self.m, "n": self.n, "k": self.k}


IMPLEMENTATIONS: tuple[Implementation[GatedProduct], ...] = (
    Implementation("pallas_tpu", lambda target, call: tpu_reason(target, call.dtype)),
    Implementation("pallas_gpu", lambda target, call: gpu_reason(target, call.dtype)),
    Implementation("xla", lambda _target, _call: None),
)
