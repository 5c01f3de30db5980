"""What is known of one product before it runs, and which kernels take it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxscale.kernels.registry import Implementation
from jaxscale.kernels.target import Target, reason_without
from jaxscale.kernels.tiles import Layout

Role = Literal["forward", "input_gradient", "weight_gradient"]
# Forward: x [m, k] w [k, n]. By input: g [m, k] w [n, k] transposed. By weight: x [k, m] transposed, g [k, n].
LAYOUTS: Mapping[Role, Layout] = {
    "forward": "nn",
    "input_gradient": "nt",
    "weight_gradient": "tn",
}
_HOPPER = ("H100", "H200", "GH200", "H800", "H20")


@dataclass(frozen=True)
class Product:
    """Sizes of a product of one device's matrices: [m, k] times [k, n], in `layout` (see `tiles.Layout`)."""

    m: int
    n: int
    k: int
    dtype: str
    layout: Layout

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"m": self.m, "n": self.n, "k": self.k}


def product_of(role: Role, rows: int, inward: int, outward: int, dtype: str) -> Product:
    """The product of a role in a layer that takes [rows, inward] to [rows, outward]."""
    sizes = {
        "forward": (rows, outward, inward),
        "input_gradient": (rows, inward, outward),
        "weight_gradient": (inward, outward, rows),
    }[role]
    return Product(*sizes, dtype=dtype, layout=LAYOUTS[role])


def tpu_reason(target: Target, dtype: str) -> str | None:
    """Why the TPU kernels of tiled products do not serve a target and a dtype, or None."""
    if target.platform != "tpu":
        return f"it needs a TPU, and this is {target.platform}"
    if dtype not in {"bfloat16", "float32"}:
        return f"it multiplies bfloat16 or float32, not {dtype}"
    return reason_without(target)


def gpu_reason(target: Target, dtype: str) -> str | None:
    """Why the Hopper kernels of tiled products do not serve a target and a dtype, or None."""
    if target.platform != "gpu":
        return f"it needs an NVIDIA GPU, and this is {target.platform}"
    if not any(name in target.device_kind for name in _HOPPER):
        return f"it is written for Hopper (H100, H200), and this is {target.device_kind}"
    if dtype not in {"bfloat16", "float16"}:
        return f"it multiplies bfloat16 or float16, not {dtype}"
    return reason_without(target)


IMPLEMENTATIONS: tuple[Implementation[Product], ...] = (
    Implementation("pallas_tpu", lambda target, call: tpu_reason(target, call.dtype)),
    Implementation("pallas_gpu", lambda target, call: gpu_reason(target, call.dtype)),
    Implementation("xla", lambda _target, _call: None),
    Implementation("reference", lambda _target, _call: None),
)
