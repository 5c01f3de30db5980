"""How fast the links between the attached devices are: three collectives along each physical dim, small and large.

The numbers are those of the planner's formulas (`planner.costs.network`) turned round: an all-gather of V bytes over n
devices takes V (n - 1) / n / W on a switch or a line, V / 2 W on a ring, and a latency; W is `Dim.bandwidth`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxscale.hardware.cluster import Cluster, Dim
from jaxscale.parallel.attached import attached_cluster, physical_grid

# Elements of each device's part (float32): one that only waits, one that only moves. CPUs copy, which takes their time.
_SMALL = 64
_LARGE = {"cpu": 2**18, "gpu": 2**24, "tpu": 2**23}
# Collectives in a timed program, so that starting it counts little; and timings, of which the fastest counts.
_REPEATS = {"small": 32, "large": 4}
_TIMINGS = 3
_ITEM = 4

Operation = Callable[[jax.Array, str, int], jax.Array]
# Of the operand and of how many times.
Program = Callable[[jax.Array, int], jax.Array]


@dataclass(frozen=True)
class LinkSpeed:
    """What one dim of a cluster does. Bandwidths: bytes/s that one device sends one way, as `Dim.bandwidth` counts.

    gather, reduce: in an all-gather and an all-reduce; neighbor: from each device to the next (collective permute).
    latency: seconds a hop.
    """

    dim: str
    size: int
    gather: float
    reduce: float
    neighbor: float
    latency: float


def here(*, measure: bool, devices: Sequence[jax.Device] | None = None) -> Cluster:
    """The attached devices as a cluster; with `measure`, its dims have the measured bandwidths and latencies.

    Raises UnknownDevices for devices that the tables do not have.
    """
    devices = jax.devices() if devices is None else devices
    cluster = attached_cluster(devices)
    return measured_cluster(cluster, measure_links(cluster, devices)) if measure else cluster


def measured_cluster(cluster: Cluster, speeds: Sequence[LinkSpeed]) -> Cluster:
    """The cluster with the speeds of its dims in place of those of data sheets."""
    by_name = {speed.dim: speed for speed in speeds}
    dims = tuple(_measured(dim, by_name[dim.name], cluster.kind) for dim in cluster.dims)
    return replace(cluster, name=f"{cluster.name} (measured)" if dims else cluster.name, dims=dims)


def measure_links(
    cluster: Cluster, devices: Sequence[jax.Device] | None = None
) -> tuple[LinkSpeed, ...]:
    """The speed of each dim, all lines of devices along it at work together. Takes seconds, mostly compilation."""
    grid = physical_grid(cluster, jax.devices() if devices is None else devices)
    names = tuple(dim.name for dim in reversed(cluster.dims))
    mesh = Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))
    return tuple(_speed(mesh, dim, _LARGE[cluster.kind]) for dim in cluster.dims)


def _speed(mesh: Mesh, dim: Dim, large: int) -> LinkSpeed:
    gather, waiting = _seconds(_gather, mesh, dim, large)
    reduce, _ = _seconds(_reduce, mesh, dim, large)
    neighbor, _ = _seconds(_permute, mesh, dim, large)
    part = large * _ITEM
    crossing = _crossing_bytes(dim, part * dim.size)
    return LinkSpeed(
        dim=dim.name,
        size=dim.size,
        gather=crossing / gather,
        # Of the part of a device, as in a reduce-scatter and an all-gather of it.
        reduce=2 * _crossing_bytes(dim, part) / reduce,
        neighbor=part / neighbor,
        latency=waiting / _hops(dim),
    )


def _crossing_bytes(dim: Dim, volume: float) -> float:
    """What one device sends one way over one link in an all-gather of `volume` bytes."""
    return volume / 2 if dim.wiring == "ring" else volume * (dim.size - 1) / dim.size


def _hops(dim: Dim) -> float:
    """What the planner counts for a whole dim; on a switch NCCL gathers around a ring of neighbors."""
    return dim.size / 2 if dim.wiring == "ring" else dim.size - 1


def _measured(dim: Dim, speed: LinkSpeed, kind: str) -> Dim:
    shared = "; CPU devices copy within one memory: this is no network" if kind == "cpu" else ""
    source = (
        f"measured here: all-gather {speed.gather:.3g} B/s, all-reduce {speed.reduce:.3g} B/s, "
        f"to a neighbor {speed.neighbor:.3g} B/s{shared}"
    )
    return replace(dim, bandwidth=speed.gather, latency=speed.latency, source=source)


def _seconds(operation: Operation, mesh: Mesh, dim: Dim, large: int) -> tuple[float, float]:
    """Seconds of a collective of `large` elements a device less what it waits, and those of a tiny one."""
    run = _program(operation, mesh, dim)
    waiting = _timed(run, _operand(mesh, _SMALL), _REPEATS["small"])
    whole = _timed(run, _operand(mesh, large), _REPEATS["large"])
    # A latency that swings by more than the transfer takes must not leave nothing of it.
    return max(whole - waiting, whole / 10), waiting


def _program(operation: Operation, mesh: Mesh, dim: Dim) -> Program:
    """A compiled program that runs the collective again and again, each on what the one before left."""
    spec = PartitionSpec(mesh.axis_names)

    def repeated(part: jax.Array, times: jax.Array) -> jax.Array:
        def once(_: Any, value: jax.Array) -> jax.Array:
            return operation(value, dim.name, dim.size)

        done: jax.Array = lax.fori_loop(0, times, once, part)
        return done

    mapped: Any = jax.shard_map(
        repeated, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False
    )
    program: Program = jax.jit(mapped)
    return program


def _operand(mesh: Mesh, elements: int) -> jax.Array:
    spec = PartitionSpec(mesh.axis_names)
    make = partial(jnp.ones, elements * mesh.size, np.float32)
    operand: jax.Array = jax.jit(make, out_shardings=NamedSharding(mesh, spec))()
    return operand


def _timed(run: Program, operand: jax.Array, times: int) -> float:
    """Seconds of one collective: the fastest of a few timings, since interruptions only ever make one slower."""
    run(operand, 1).block_until_ready()
    best = float("inf")
    for _ in range(_TIMINGS):
        start = time.perf_counter()
        run(operand, times).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best / times


def _gather(value: jax.Array, name: str, size: int) -> jax.Array:
    """Keeps the part of a neighbor; the barrier keeps the compiler from sending only that."""
    whole = lax.optimization_barrier(lax.all_gather(value, name, tiled=True))
    other = (lax.axis_index(name) + 1) % size
    return lax.dynamic_slice_in_dim(whole, other * value.shape[0], value.shape[0])


def _reduce(value: jax.Array, name: str, size: int) -> jax.Array:
    total: jax.Array = lax.psum(value, name)
    return total / size


def _permute(value: jax.Array, name: str, size: int) -> jax.Array:
    ring = [(index, (index + 1) % size) for index in range(size)]
    sent: jax.Array = lax.ppermute(value, name, ring)
    return sent
