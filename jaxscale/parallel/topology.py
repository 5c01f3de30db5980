"""Devices that are not there: what a step can be compiled for, and meshes over their physical shape."""

import math
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
from jax.experimental import topologies

from jaxscale.errors import UserError
from jaxscale.hardware.cluster import Cluster
from jaxscale.parallel.gpu_targets import GPU_TARGETS

INSTALL = "pip install 'jaxscale[aot]'"

# What libtpu calls a slice of each chip, and how many torus dims its names have.
_TPU_NAMES: Mapping[str, tuple[str, int]] = {
    "TPU v4": ("v4", 3),
    "TPU v5e": ("v5e", 2),
    "TPU v5p": ("v5p", 3),
    "TPU v6e": ("v6e", 2),
    "TPU v7x": ("tpu7x", 3),
}
# Two cores of a v4 chip are one device only as a "megacore", which is how JAX runs on one that is there.
_TPU_OPTIONS: Mapping[str, Mapping[str, Any]] = {"v4": {"chip_config_name": "megacore"}}
_HOST_BOUNDS = (2, 2, 1)
_TORUS = ("x", "y", "z")
_CUDA_PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm")
_VARIABLES = {
    # Without it a second process that loads libtpu dies on the lock of the first.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # The rest keeps libtpu from asking a metadata server what machine this is, and from printing what it misses.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def prepare_process() -> None:
    """Make this process one that compiles for machines that are not there. To be called before JAX starts a backend.

    Sets the environment that libtpu reads as it loads, where the user has not, and starts nothing but the CPU backend.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")


def abstract_devices(cluster: Cluster) -> list[jax.Device]:
    """Devices to lower and compile for: those of a cluster that is not there, or, for `cpu`, attached ones.

    Raises UserError where packages are missing (with the command that installs them), where the compiler knows no such
    chip or slice, or where there are fewer CPU devices than the cluster has.
    """
    makers = {"cpu": _cpu_devices, "tpu": _tpu_devices, "gpu": _gpu_devices}
    devices = makers[cluster.kind](cluster)
    assert len(devices) == cluster.num_devices, f"{len(devices)} devices for {cluster.name}"
    return devices


def _cpu_devices(cluster: Cluster) -> list[jax.Device]:
    devices = jax.devices("cpu")
    if len(devices) < cluster.num_devices:
        raise UserError(
            f"{cluster.name} has {cluster.num_devices} devices, this process {len(devices)}: "
            f"start it with JAX_NUM_CPU_DEVICES={cluster.num_devices} in the environment"
        )
    return list(devices[: cluster.num_devices])


def _tpu_devices(cluster: Cluster) -> list[jax.Device]:
    if cluster.chip.name not in _TPU_NAMES:
        raise UserError(_unknown(cluster, "libtpu", _TPU_NAMES))
    _need(cluster, "libtpu")
    family, num_dims = _TPU_NAMES[cluster.chip.name]
    sizes = {dim.name: dim.size for dim in cluster.dims}
    shape = [sizes.get(dim, 1) for dim in _TORUS[:num_dims]]
    options: dict[str, Any] = dict(_TPU_OPTIONS.get(family, {}))
    bounds = [math.gcd(size, bound) for size, bound in zip([*shape, 1], _HOST_BOUNDS, strict=False)]
    if tuple(bounds) != _HOST_BOUNDS:
        options["chips_per_host_bounds"] = bounds
    if "slices" in sizes:
        options["num_slices"] = sizes["slices"]
    name = f"{family}:{'x'.join(map(str, shape))}"
    return _describe(cluster, name, platform="tpu", **options)


def _gpu_devices(cluster: Cluster) -> list[jax.Device]:
    if cluster.chip.name not in GPU_TARGETS:
        raise UserError(_unknown(cluster, "jaxscale", GPU_TARGETS))
    _need(cluster, *_CUDA_PACKAGES)
    hosts = cluster.num_devices // cluster.devices_per_host
    return _describe(
        cluster,
        cluster.chip.name,
        platform="cuda",
        topology=f"1x{hosts}x{cluster.devices_per_host}",
        target_config=GPU_TARGETS[cluster.chip.name].text,
    )


def _describe(cluster: Cluster, name: str, platform: str, **options: Any) -> list[jax.Device]:
    try:
        topology = topologies.get_topology_desc(name, platform=platform, **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{cluster.name}: the compiler knows no such machine: {error}") from None
    return list(topology.devices)


def _need(cluster: Cluster, *packages: str) -> None:
    missing = [name for name in packages if not _installed(name)]
    if missing:
        raise UserError(
            f"compiling for {cluster.name} needs {', '.join(missing)}: {INSTALL} installs what is missing"
        )


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _unknown(cluster: Cluster, who: str, known: Mapping[str, object]) -> str:
    return (
        f"{who} cannot compile for {cluster.chip.name}; of this kind it can for: {', '.join(known)}"
    )
