"""The devices that are attached, as the planner's kind of cluster."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray

from jaxscale.errors import UserError
from jaxscale.hardware.chips import Chip, find_chip
from jaxscale.hardware.cluster import Cluster
from jaxscale.hardware.cpu import cpu_cluster
from jaxscale.hardware.gpu import GpuFamily, gpu_cluster
from jaxscale.hardware.gpu_families import GPU_FAMILIES
from jaxscale.hardware.tpu import TPU_FAMILIES, TpuFamily, tpu_cluster

MIB = 2**20


class UnknownDevices(UserError):
    """Devices that no entry of the hardware tables describes."""


@dataclass(frozen=True)
class DeviceFacts:
    """What JAX says of one device. coords: of its chip in a TPU's torus, x first; empty elsewhere.

    slice: index of its TPU slice, or of the machine (or NVLink fabric) of a GPU.
    """

    kind: str
    platform: str
    process: int = 0
    slice: int = 0
    coords: tuple[int, ...] = ()
    core: int = 0


def attached_cluster(devices: Sequence[jax.Device] | None = None) -> Cluster:
    """The cluster that `devices` (all attached ones by default) make, with the memory that they really give a program.

    Raises UnknownDevices for chips that the tables do not have, and for a part of a slice or an uneven set of nodes.
    """
    devices = jax.devices() if devices is None else devices
    cluster = cluster_of([facts_of(device) for device in devices])
    limit = memory_limit(devices)
    return cluster if limit is None else replace(cluster, usable_hbm=limit)


def facts_of(device: jax.Device) -> DeviceFacts:
    on_tpu = device.platform == "tpu"
    return DeviceFacts(
        kind=device.device_kind,
        platform=device.platform,
        process=device.process_index,
        slice=getattr(device, "slice_index", None) or 0,
        coords=tuple(device.coords) if on_tpu else (),
        core=device.core_on_chip if on_tpu else 0,
    )


def cluster_of(devices: Sequence[DeviceFacts]) -> Cluster:
    """The catalogue's cluster with these devices. Raises UnknownDevices where it has none."""
    kinds = {device.kind for device in devices}
    if {device.platform for device in devices} == {"cpu"}:
        return cpu_cluster(len(devices))
    chip = find_chip(devices[0].kind)
    if chip is None or len(kinds) > 1:
        raise UnknownDevices(f"no table describes {len(devices)} x {' and '.join(sorted(kinds))}")
    try:
        return _of_chip(chip, devices)
    except UnknownDevices:
        raise
    except UserError as error:
        raise UnknownDevices(f"{len(devices)} x {chip.name}: {error}") from None


def memory_limit(devices: Sequence[jax.Device]) -> float | None:
    """Bytes that a program may take of the fullest device; None where devices do not say (CPU, or not attached)."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    attached = set(jax.local_devices()) & set(here)
    stats = [device.memory_stats() for device in attached]
    limits = [stat["bytes_limit"] for stat in stats if stat and "bytes_limit" in stat]
    if not limits:
        return None
    if jax.process_count() == 1:
        return float(min(limits))
    # Every process must come to the same plan. In MiB, as a sum over hosts knows no 64-bit integers.
    everywhere = multihost_utils.process_allgather(np.array(min(limits) // MIB, np.int32))
    return float(np.min(everywhere)) * MIB


def physical_grid(cluster: Cluster, devices: Sequence[jax.Device]) -> NDArray[np.object_]:
    """The devices as an array with one dim for each of the cluster's, outermost first."""
    ordered = sorted(devices, key=lambda device: (*_position(facts_of(device)), device.id))
    grid = np.empty(len(ordered), object)
    grid[:] = ordered
    return grid.reshape([dim.size for dim in reversed(cluster.dims)])


def _position(device: DeviceFacts) -> tuple[int, ...]:
    """Where a device is, outermost coordinate first."""
    return (device.slice, *reversed(device.coords), device.core, device.process)


def _of_chip(chip: Chip, devices: Sequence[DeviceFacts]) -> Cluster:
    for gpu in GPU_FAMILIES.values():
        if gpu.chip == chip:
            return _gpu(gpu, devices)
    for tpu in TPU_FAMILIES.values():
        if tpu.chip == chip:
            return _tpu(tpu, devices)
    raise UnknownDevices(f"no table describes clusters of {chip.name}")


def _gpu(family: GpuFamily, devices: Sequence[DeviceFacts]) -> Cluster:
    """Nodes are what JAX calls slices of GPUs: those of one boot of one machine, or of one NVLink fabric.

    Where it sees one slice that no node has room for, each process is a node.
    """
    nodes = Counter(device.slice for device in devices)
    if len(nodes) == 1 and len(devices) > family.node:
        nodes = Counter(device.process for device in devices)
    sizes = set(nodes.values())
    if len(sizes) > 1:
        counts = ", ".join(map(str, nodes.values()))
        raise UnknownDevices(f"nodes with different numbers of {family.name} ({counts})")
    return gpu_cluster(family, sizes.pop(), len(nodes))


def _tpu(family: TpuFamily, devices: Sequence[DeviceFacts]) -> Cluster:
    slices: dict[int, set[tuple[int, ...]]] = {}
    for device in devices:
        slices.setdefault(device.slice, set()).add(device.coords)
    shapes = {_shape(coords, family.rule.num_dims) for coords in slices.values()}
    if len(shapes) > 1:
        raise UnknownDevices(f"slices of different shapes: {sorted(shapes)}")
    cluster = tpu_cluster(family, shapes.pop(), len(slices))
    if cluster.num_devices != len(devices):
        raise UnknownDevices(
            f"{len(devices)} devices of the {cluster.num_devices} of {cluster.name}"
        )
    return cluster


def _shape(coords: set[tuple[int, ...]], num_dims: int) -> tuple[int, ...]:
    """Chips along each dim of the box around `coords`."""
    bounds = [max(dim) - min(dim) + 1 for dim in zip(*coords, strict=True)]
    return tuple(bounds[:num_dims])
