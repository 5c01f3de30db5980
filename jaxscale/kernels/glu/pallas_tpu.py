"""The gated kernels on a TPU: `tiled_tpu` with two sums in vector memory, or with gate and up behind one."""

import jax

from jaxscale.kernels.registry import Choice
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiled_tpu import tiled_product
from jaxscale.kernels.tiles import Finish, Layout, TiledProduct, Tiles

# 24 MiB of vector memory of bfloat16: two sums or two kept tiles beside the operands, three results. Not tuned.
DEFAULT_TILES = Tiles(m=1024, n=512, k=512)


def product(
    layout: Layout,
    finish: Finish,
    left: jax.Array,
    rights: tuple[jax.Array, ...],
    extras: tuple[jax.Array, ...],
    choice: Choice,
    target: Target,
    *,
    in_place: bool,
) -> tuple[jax.Array, ...]:
    """See `api.gated_product`."""
    taken = tuple(range(len(extras))) if in_place else ()
    kernel = TiledProduct(layout, finish, (left.dtype,) * 3, taken)
    sizes = DEFAULT_TILES.updated(choice.config)
    return tiled_product(kernel, sizes, target, left, rights, extras)
