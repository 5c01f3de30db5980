"""Products on a TPU: `tiled_tpu` with bias, activation and residual behind the sum, all in vector memory."""

import jax
import jax.numpy as jnp

from jaxscale.kernels.matmul.epilogue import Epilogue, extras_of, finish_of
from jaxscale.kernels.registry import Choice
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiled_tpu import tiled_product
from jaxscale.kernels.tiles import Layout, TiledProduct, Tiles

# Of bfloat16, these take 12 MiB of vector memory, and 512 FLOPs for each byte read: over what any of v5e (240), v5p
# (166) and v6e (560, nearly) needs to be bound by its matrix units. Not tuned: nothing was measured on a TPU yet.
DEFAULT_TILES = Tiles(m=1024, n=1024, k=512)


def product(
    layout: Layout,
    left: jax.Array,
    right: jax.Array,
    epilogue: Epilogue,
    choice: Choice,
    target: Target,
) -> jax.Array:
    """See `api.matmul` and `tiles.Layout`."""
    extras = extras_of(epilogue)
    operands = tuple(
        extra.astype(jnp.float32)[None] if name == "bias" else extra
        for name, extra in extras.items()
    )
    in_place = (list(extras).index("residual"),) if epilogue.in_place else ()
    kernel = TiledProduct(layout, finish_of(epilogue), (epilogue.out_dtype,), in_place)
    tiles = DEFAULT_TILES.updated(choice.config)
    return tiled_product(kernel, tiles, target, left, (right,), operands)[0]
