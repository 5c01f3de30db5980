"""The static facts of one loss, and which kernels serve it."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale.kernels.matmul.form import gpu_reason
from jaxscale.kernels.registry import Implementation
from jaxscale.kernels.target import Target, reason_without


@dataclass(frozen=True)
class LossCall:
    """tokens: of a chunk. vocab: rows of the table on one device.

    layout: "sums" of each row's logits, or "logits" where they are kept for a gradient.
    """

    layout: str
    dtype: str
    tokens: int
    embed: int
    vocab: int

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"t": self.tokens, "e": self.embed, "v": self.vocab}


def _no_tpu_kernel(target: Target, call: LossCall) -> str | None:
    if target.platform != "tpu":
        return f"it is a TPU kernel, and this is {target.device_kind}"
    if call.dtype not in {"bfloat16", "float32"}:
        return f"it multiplies bfloat16 and float32, not {call.dtype}"
    return reason_without(target)


def _no_gpu_kernel(target: Target, call: LossCall) -> str | None:
    return gpu_reason(target, call.dtype)


def _never(_: Target, __: LossCall) -> None:
    return None


IMPLEMENTATIONS: tuple[Implementation[LossCall], ...] = (
    Implementation("pallas_tpu", _no_tpu_kernel),
    Implementation("pallas_gpu", _no_gpu_kernel),
    Implementation("xla", _never),
)
