"""The gated kernels on a Hopper GPU: `tiled_gpu` with both sums in registers, or with gate and up fetched behind one.

Two fp32 sums of 128 x 64 elements fill the registers of a warpgroup as one of 128 x 128 does. All three results leave
through the same small tiles of shared memory: tiles of their own would cost a stage of operands.
"""

import jax

from jaxscale.kernels.registry import Choice
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiled_gpu import GpuTiles, tiled_product
from jaxscale.kernels.tiles import Finish, Layout, TiledProduct

# By the number of sums. Not tuned: nothing was measured here yet.
DEFAULT_TILES = {1: GpuTiles(), 2: GpuTiles(n=64)}


def product(
    layout: Layout,
    finish: Finish,
    left: jax.Array,
    rights: tuple[jax.Array, ...],
    extras: tuple[jax.Array, ...],
    choice: Choice,
    target: Target,
) -> tuple[jax.Array, ...]:
    """See `api.gated_product`."""
    kernel = TiledProduct(layout, finish, (left.dtype,) * 3)
    sizes = DEFAULT_TILES[len(rights)].updated(choice.config)
    return tiled_product(kernel, sizes, target, left, rights, extras)
