"""What kernels are compiled for: attached devices, those of a mesh, or ones that are not there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
from jax.sharding import AbstractMesh, Mesh

from jaxscale.errors import UserError

Platform = Literal["cpu", "tpu", "gpu"]

# Words that ask for another platform's kernels, interpreted on CPU: for tests and debugging, thousands of times slower.
_INTERPRETED = {
    "interpret_tpu": ("tpu", "TPU v5"),
    "interpret_gpu": ("gpu", "NVIDIA H200"),
}


@dataclass(frozen=True)
class Target:
    """platform: `cpu`, `tpu` or `gpu`. device_kind: as JAX spells it: "TPU v5", "TPU v5 lite", "NVIDIA H200", "cpu".

    interpreted: kernels of this platform are run by Pallas's interpreter, on CPU. Never inferred, only asked for.
    """

    platform: str
    device_kind: str
    interpreted: bool = False

    def __str__(self) -> str:
        return f"{self.device_kind}, interpreted" if self.interpreted else self.device_kind


def target_of(where: Sequence[jax.Device] | Mesh | AbstractMesh | None = None) -> Target:
    """The target of devices, of a mesh (abstract ones with an abstract device too), or of this process's default.

    Raises UserError for devices of several kinds, and for an abstract mesh that names no device.
    """
    if isinstance(where, AbstractMesh):
        device = where.abstract_device
        if device is None or device.device_kind is None:
            raise UserError(f"the mesh {where.shape} does not say for which device it is")
        return Target(_platform(device.platform), device.device_kind)
    devices = list(where.devices.flat) if isinstance(where, Mesh) else list(where or jax.devices())
    kinds = sorted({device.device_kind for device in devices})
    if len(kinds) > 1:
        raise UserError(f"a mesh of several kinds of devices: {', '.join(kinds)}")
    return Target(_platform(devices[0].platform), kinds[0])


def asked_for(target: Target, wanted: str) -> tuple[Target, str]:
    """The target and the implementation that a word of the user's stands for: `interpret_tpu` is Pallas elsewhere."""
    if wanted not in _INTERPRETED:
        return target, wanted
    if target.platform != "cpu":
        raise UserError(f"kernels={wanted} runs on CPU, and this is {target.device_kind}")
    platform, kind = _INTERPRETED[wanted]
    return replace(target, platform=platform, device_kind=kind, interpreted=True), "pallas"


def reason_without(target: Target) -> str | None:
    """Why Pallas kernels of ours do not run on a target with this release of JAX, or None. Imports no Pallas."""
    if target.platform not in {"tpu", "gpu"}:
        return f"Pallas kernels are for TPU and GPU, and this is {target.platform}"
    if target.platform == "gpu" and target.interpreted and jax.__version_info__ < (0, 11, 2):
        return f"interpreting Mosaic GPU kernels needs JAX 0.11.2, and this is {jax.__version__}"
    return None


def _platform(name: str | None) -> str:
    """JAX calls an abstract NVIDIA device `cuda`, an attached one `gpu`."""
    return {"cuda": "gpu", "rocm": "gpu"}.get(name or "", name or "")
