"""Products on a Hopper GPU: `tiled_gpu` with a residual behind the sum; XLA's own fusion adds bias and activation.

A residual or a sum so far is fetched tile by tile while the next operands are on their way. A bias costs XLA one pass
over the result, which no model here with a GPU kernel worth taking has.
"""

from dataclasses import replace

import jax

from jaxscale.kernels.matmul.epilogue import Epilogue, after, finish_of
from jaxscale.kernels.registry import Choice
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiled_gpu import GpuTiles, tiled_product
from jaxscale.kernels.tiles import Layout, TiledProduct

# The shape of the fastest configurations of JAX's own Hopper kernel. Not tuned: nothing was measured here yet.
DEFAULT_TILES = GpuTiles()


def product(
    layout: Layout,
    left: jax.Array,
    right: jax.Array,
    epilogue: Epilogue,
    choice: Choice,
    target: Target,
) -> jax.Array:
    """See `api.matmul` and `tiles.Layout`."""
    inside = epilogue if _fits(epilogue) else replace(epilogue, activation=None, residual=None)
    inside = replace(inside, bias=None)
    extras = () if inside.residual is None else (inside.residual,)
    kernel = TiledProduct(layout, finish_of(inside), (inside.out_dtype,))
    tiles = DEFAULT_TILES.updated(choice.config)
    out = tiled_product(kernel, tiles, target, left, (right,), extras)[0]
    return out if _fits(epilogue) else after(out, epilogue)


def _fits(epilogue: Epilogue) -> bool:
    """Whether all that follows the sum happens in the kernel: an activation does not come before its bias."""
    return epilogue.bias is None
