"""Pallas, as the supported releases of JAX spell it. The only module that imports it.

Pallas's Triton backend is deprecated since JAX 0.11: GPU kernels here are Mosaic GPU (`gpu`), TPU kernels Mosaic
(`tpu`). Import this module only where a Pallas kernel was chosen: it takes a second.
"""

from typing import Any

import jax
from jax.experimental import pallas as _pallas
from jax.experimental.pallas import mosaic_gpu as _gpu
from jax.experimental.pallas import tpu as _tpu

from jaxscale.kernels.target import Target, reason_without

__all__ = ["gpu", "gpu_kernel", "interpreter", "pl", "reason_without", "splash", "tpu", "tpu_call"]

# Untyped, as their members differ between releases.
pl: Any = _pallas
gpu: Any = _gpu
tpu: Any = _tpu


def interpreter(target: Target, *, detect_races: bool = False) -> Any:
    """The value of `interpret=` for a target: what makes a kernel run on CPU, or False where it is compiled.

    Without races to detect, a TPU kernel becomes plain JAX, which composes with all transformations and is faster. A
    race found raises in JAX 0.12, and prints "RACE DETECTED" before.
    """
    if not target.interpreted:
        return False
    if target.platform == "tpu":
        return tpu.InterpretParams(detect_races=True) if detect_races else True
    return gpu.InterpretGPUParams(detect_races=detect_races)


def tpu_call(kernel: Any, target: Target, *, detect_races: bool = False, **settings: Any) -> Any:
    """`pallas_call` for a TPU target. settings: those of `pl.pallas_call`.

    Results stand behind a barrier: XLA would fuse a kernel with what writes its result into a larger array (of all
    layers, say), and such a fusion has 16 MiB of vector memory, whatever the kernel asks for (libtpu 0.0.42).
    """
    interpret = interpreter(target, detect_races=detect_races)
    call = pl.pallas_call(kernel, interpret=interpret, **settings)
    if target.interpreted:
        return call
    return lambda *operands: jax.lax.optimization_barrier(call(*operands))


def gpu_kernel(
    body: Any,
    target: Target,
    *,
    out_type: Any,
    scratch_types: Any = (),
    detect_races: bool = False,
    **settings: Any,
) -> Any:
    """A Mosaic GPU kernel for a target. settings: those of `gpu.kernel` (grid, cluster, threads)."""
    interpret = interpreter(target, detect_races=detect_races)
    parameters = gpu.CompilerParams(lowering_semantics=gpu.LoweringSemantics.Warpgroup)
    return gpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        compiler_params=parameters,
        interpret=interpret or None,
        **settings,
    )


def splash() -> Any:
    """JAX's splash attention for TPU: its kernel, its block sizes and its masks."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention
