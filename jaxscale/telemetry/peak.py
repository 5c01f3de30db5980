"""Peak arithmetic of the devices at hand: from the chip table, or measured where it has no entry."""

import functools
import os
import time

import jax
import jax.numpy as jnp

from jaxscale.hardware import find_chip
from jaxscale.telemetry.mfu import Peak

# Large enough that the measured rate no longer rises, small enough for a few repetitions in the time.
_CPU_SIZE = 1024
_ACCELERATOR_SIZE = 8192
_MEASURING_SECONDS = 0.2


def device_peak(device: jax.Device, dtype: str) -> Peak:
    """Peak matmul rate of `device` for operands of `dtype` ("bfloat16", "float32", ...).

    Known chips answer from their datasheet. CPUs and unknown devices are timed on one square matmul
    (under half a second, once per process); a CPU's peak is that of the machine.
    """
    chip = find_chip(device.device_kind)
    if chip is not None and dtype in chip.peak_flops:
        return Peak(chip.peak_flops[dtype], f"{chip.name} {dtype}: {chip.source}")
    return _measured_peak(device, dtype)


@functools.cache
def _measured_peak(device: jax.Device, dtype: str) -> Peak:
    on_cpu = device.platform == "cpu"
    size = _CPU_SIZE if on_cpu else _ACCELERATOR_SIZE
    rate = 2 * size**3 / _best_matmul_seconds(device, dtype, size)
    where = f"{usable_cores()} cores" if on_cpu else device.device_kind
    provenance = f"measured: {size}^3 {dtype} matmul, {where}"
    return Peak(rate, provenance, scope="machine" if on_cpu else "device")


def _best_matmul_seconds(device: jax.Device, dtype: str, size: int) -> float:
    """Seconds of the fastest repetition: interruptions only ever make one slower."""
    operand = jax.device_put(jnp.ones((size, size), dtype), device)
    matmul = jax.jit(jnp.matmul)
    matmul(operand, operand).block_until_ready()
    best = float("inf")
    deadline = time.perf_counter() + _MEASURING_SECONDS
    while best == float("inf") or time.perf_counter() < deadline:
        start = time.perf_counter()
        matmul(operand, operand).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
