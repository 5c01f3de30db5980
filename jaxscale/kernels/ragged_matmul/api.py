"""Rows times the matrix of their group, and the two gradients, each by the kernel chosen for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from jaxscale.kernels.choice import Choice
from jaxscale.kernels.local import check_local
from jaxscale.kernels.matmul.form import gpu_reason, tpu_reason
from jaxscale.kernels.ragged_matmul import xla
from jaxscale.kernels.ragged_matmul.form import (
    OutRows,
    RaggedCall,
    Rows,
    Sizes,
    Weights,
    check_shapes,
)
from jaxscale.kernels.registry import Implementation, choose
from jaxscale.kernels.residuals import product_residual
from jaxscale.kernels.target import Target, asked_for, target_of
from jaxscale.kernels.tiles import Layout
from jaxscale.kernels.tuning import read

__all__ = ["IMPLEMENTATIONS", "TUNING", "choices", "product", "ragged_matmul"]

_LAYOUTS: tuple[Layout, ...] = ("nn", "nt", "tn")
TUNING = Path(__file__).parent / "tuning"
# Rows of a block where a product takes microseconds and each step of a loop some too.
_ACCELERATOR_BLOCK = 1024


@dataclass(frozen=True)
class _Kernel:
    """A choice, as what can be a static argument."""

    name: str
    config: tuple[tuple[str, int], ...]
    target: Target
    local: bool


def ragged_matmul(
    x: Rows,
    weight: Weights,
    group_sizes: Sizes,
    *,
    kernels: str = "auto",
    target: Target | None = None,
    local: bool = False,
) -> OutRows:
    """Rows of x, sorted by group, times their group's matrix, summed in fp32; differentiable in x and weight.

    The first `group_sizes[0]` rows belong to group 0, and so on; groups may be empty, and rows beyond the last group
    give zeros. local: the arrays are this device's own, so that layouts may be pinned. kernels: see `choices`.
    target: that of this process's devices unless given. Raises UserError for operands that do not fit together.
    """
    check_shapes(x, weight, group_sizes)
    target, wanted = asked_for(target or target_of(), kernels)
    groups, inward, outward = weight.shape
    sizes = (x.shape[0], inward, outward, groups)
    chosen = choices(str(x.dtype), sizes, target, wanted)
    if any(choice.name.startswith("pallas") for choice in chosen.values()):
        check_local("ragged_matmul", x, weight)
    static = tuple(_static(choice, target, local=local) for choice in chosen.values())
    return product_residual(_product(x, weight, group_sizes, static))


def product(
    layout: Layout,
    left: jax.Array,
    right: jax.Array,
    group_sizes: Sizes,
    choice: Choice,
    target: Target,
) -> jax.Array:
    """One of the three products on one device's own arrays, by the kernel that was chosen for it.

    left, right: rows [tokens, inward] and matrices [groups, inward, outward] in "nn"; rows [tokens, outward] and the
    same matrices in "nt"; rows [tokens, inward] and [tokens, outward] in "tn". Not differentiable.
    """
    kernel = _static(choice, target, local=True)
    if layout == "tn":
        return _rows_over_rows(kernel, left, right, group_sizes)
    return _rows_by_matrices(kernel, left, right, group_sizes, transposed=layout == "nt")


def _static(choice: Choice, target: Target, *, local: bool) -> _Kernel:
    return _Kernel(choice.name, tuple(choice.config.items()), target, local)


def choices(
    dtype: str, sizes: tuple[int, int, int, int], target: Target, wanted: str = "auto"
) -> Mapping[Layout, Choice]:
    """What multiplies in the forward pass ("nn"), for the gradient of x ("nt") and of the weight ("tn").

    sizes: tokens, inward, outward, groups. Raises UserError where what is wanted declines.
    """
    table = read(TUNING)
    return {
        layout: choose(
            "ragged_matmul",
            IMPLEMENTATIONS,
            target,
            RaggedCall(layout, dtype, *sizes),
            wanted,
            table,
        )
        for layout in _LAYOUTS
    }


def _no_tpu_kernel(target: Target, call: RaggedCall) -> str | None:
    return tpu_reason(target, call.dtype) or _no_tiles(call)


def _no_gpu_kernel(target: Target, call: RaggedCall) -> str | None:
    return gpu_reason(target, call.dtype) or _no_tiles(call)


def _no_tiles(call: RaggedCall) -> str | None:
    smallest = min(call.tokens, call.inward, call.outward, call.groups)
    return None if smallest else "there is nothing to multiply"


def _no_ragged_dot(target: Target, call: RaggedCall) -> str | None:
    if target.platform == "tpu" and not target.interpreted:
        if call.layout != "tn":
            return None
        return (
            f"on TPU its weight gradient multiplies all rows for each of the {call.groups} groups"
        )
    return f"on {target.platform} it multiplies all rows with each of the {call.groups} matrices"


def _never(_: Target, __: RaggedCall) -> None:
    return None


IMPLEMENTATIONS: tuple[Implementation[RaggedCall], ...] = (
    Implementation("pallas_tpu", _no_tpu_kernel),
    Implementation("pallas_gpu", _no_gpu_kernel),
    Implementation("ragged_dot", _no_ragged_dot),
    Implementation("xla", _never),
)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x: Rows, weight: Weights, group_sizes: Sizes, kernels: tuple[_Kernel, ...]) -> OutRows:
    return _rows_by_matrices(kernels[0], x, weight, group_sizes)


def _remember(
    x: Rows, weight: Weights, group_sizes: Sizes, kernels: tuple[_Kernel, ...]
) -> tuple[OutRows, tuple[Rows, Weights, Sizes]]:
    return _product(x, weight, group_sizes, kernels), (x, weight, group_sizes)


def _differentiate(
    kernels: tuple[_Kernel, ...], saved: tuple[Rows, Weights, Sizes], to_out: OutRows
) -> tuple[Rows, Weights, None]:
    x, weight, group_sizes = saved
    _, by_transposed, over_rows = kernels
    to_x = _rows_by_matrices(by_transposed, to_out, weight, group_sizes, transposed=True)
    return to_x, _rows_over_rows(over_rows, x, to_out, group_sizes), None


_product.defvjp(_remember, _differentiate)


def _rows_by_matrices(
    kernel: _Kernel, x: Rows, weight: Weights, group_sizes: Sizes, *, transposed: bool = False
) -> OutRows:
    if kernel.name == "ragged_dot":
        return jax.lax.ragged_dot(x, weight.swapaxes(1, 2) if transposed else weight, group_sizes)
    if kernel.name == "pallas_tpu":
        from jaxscale.kernels.ragged_matmul import pallas_tpu

        tiles = pallas_tpu.TILES.updated(dict(kernel.config))
        return pallas_tpu.rows_by_matrices(
            x, weight, group_sizes, kernel.target, tiles, transposed=transposed
        )
    if kernel.name == "pallas_gpu":
        from jaxscale.kernels.ragged_matmul import pallas_gpu

        gpu_tiles = pallas_gpu.TILES.updated(dict(kernel.config))
        return pallas_gpu.rows_by_matrices(
            x, weight, group_sizes, kernel.target, gpu_tiles, transposed=transposed
        )
    block = {} if kernel.target.platform == "cpu" else {"block": _ACCELERATOR_BLOCK}
    return xla.rows_by_matrices(x, weight, group_sizes, transposed=transposed, **block)


def _rows_over_rows(kernel: _Kernel, x: Rows, y: OutRows, group_sizes: Sizes) -> Weights:
    if kernel.name == "pallas_tpu":
        from jaxscale.kernels.ragged_matmul import pallas_tpu

        tiles = pallas_tpu.TILES.updated(dict(kernel.config))
        return pallas_tpu.rows_over_rows(x, y, group_sizes, kernel.target, tiles)
    if kernel.name == "pallas_gpu":
        from jaxscale.kernels.ragged_matmul import pallas_gpu_weights

        gpu_tiles = pallas_gpu_weights.TILES.updated(dict(kernel.config))
        return pallas_gpu_weights.rows_over_rows(x, y, group_sizes, kernel.target, gpu_tiles)
    on_cpu = kernel.target.platform == "cpu"
    block = {} if on_cpu else {"block": _ACCELERATOR_BLOCK}
    pinned = on_cpu and kernel.local
    return xla.rows_over_rows(x, y, group_sizes, pin_layouts=pinned, **block)
