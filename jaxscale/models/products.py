"""Products with weights, by the kernels that the surroundings choose: XLA's as they are, others on devices' blocks.

Whatever the mesh, a choice is made for the sizes of one device's blocks.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
from jaxtyping import Array, Float

from jaxscale.kernels.glu import api as glu
from jaxscale.kernels.matmul import api as matmul
from jaxscale.kernels.matmul.xla import linear
from jaxscale.kernels.target import target_of
from jaxscale.models.context import Axes, ForwardContext, forward_context

_ROWS: Axes = ("batch", "sequence")
_RESIDUAL: Axes = ("batch", "norm_sequence", "embed_activation")
Weight = tuple[jax.Array, Axes]


def project_each(
    x: Float[Array, "batch sequence embed"], weights: Sequence[Weight]
) -> list[jax.Array]:
    """The residual stream times each weight, which comes with its logical axes; on a mesh gathered for all at once."""
    context = forward_context()
    kernels = [_kernels(context, x, weight, axes, 1) for weight, axes in weights]
    if all(each.are_xla for each in kernels) and not context.writes_collectives:
        return [_by_xla(context, x, weight) for weight, _ in weights]

    def run(x: jax.Array, *blocks: jax.Array) -> list[jax.Array]:
        return [
            matmul.matmul(x, block, kernels=chosen, target=context.target)
            for block, chosen in zip(blocks, kernels, strict=True)
        ]

    outs = [_activation(axes[1:]) for _, axes in weights]
    on_blocks = context.on_blocks.each(run, (_RESIDUAL, *(axes for _, axes in weights)), outs)
    results: list[jax.Array] = on_blocks(x, *(weight for weight, _ in weights))
    return results


def project(
    x: Float[Array, "batch sequence *inward"],
    weight: Float[Array, "..."],
    axes: Axes,
    num_inward: int = 1,
) -> jax.Array:
    """X times a weight with these logical axes, over the last `num_inward` dims of x."""
    context = forward_context()
    kernels = _kernels(context, x, weight, axes, num_inward)
    if kernels.are_xla and not context.writes_collectives:
        return _by_xla(context, x, weight, num_inward)
    run = partial(matmul.matmul, num_inward=num_inward, kernels=kernels, target=context.target)
    operands = (_activation(axes[:num_inward]), axes)
    on_blocks: Callable[..., jax.Array] = context.on_blocks(
        run, operands, _activation(axes[num_inward:])
    )
    return on_blocks(x, weight)


def fused_mlp(
    x: Float[Array, "batch sequence embed"],
    gate: Float[Array, "embed mlp"],
    up: Float[Array, "embed mlp"],
    down: Float[Array, "mlp embed"],
    activation: str,
) -> Float[Array, "batch sequence embed"] | None:
    """(activation(x gate) * (x up)) down in gated kernels; None where the layer is better left as plain products."""
    context = forward_context()
    inward, outward = ("embed", "mlp"), ("mlp", "embed")
    rows, embed = _block_rows(context, x)
    mlp = context.on_blocks.shape(gate.shape, inward)[1]
    kernels = glu.choose_kernels(
        rows,
        embed,
        mlp,
        x.dtype,
        context.target or target_of(),
        wanted=context.wanted("glu"),
        wanted_matmul=context.wanted("matmul"),
    )
    if kernels.are_xla:
        return None
    run = partial(glu.gated_mlp, activation=activation, kernels=kernels)
    operands = (_RESIDUAL, inward, inward, outward)
    on_blocks: Callable[..., jax.Array] = context.on_blocks(run, operands, _RESIDUAL)
    return on_blocks(x, gate, up, down)


def _by_xla(
    context: ForwardContext, x: jax.Array, weight: jax.Array, num_inward: int = 1
) -> jax.Array:
    """The plain product, which the compiler partitions."""
    platform = context.platform
    return linear(x, weight, num_inward=num_inward, local=context.local, platform=platform)


def _kernels(
    context: ForwardContext, x: jax.Array, weight: jax.Array, axes: Axes, num_inward: int
) -> matmul.Kernels:
    block = context.on_blocks.shape(weight.shape, axes)
    sizes = math.prod(block[:num_inward]), math.prod(block[num_inward:])
    target = context.target or target_of()
    return matmul.choose_kernels(
        _block_rows(context, x)[0], *sizes, x.dtype, target, context.wanted("matmul")
    )


def _block_rows(context: ForwardContext, x: jax.Array) -> tuple[int, int]:
    """Tokens of a device, and the width of what stands in x's third dim for one that nothing splits."""
    batch, sequence, width = context.on_blocks.shape(x.shape[:3], (*_ROWS, None))
    return batch * sequence, width


def _activation(axes: Axes) -> Axes:
    """Axes of an activation that meets, or leaves, these dims of a weight."""
    return _RESIDUAL if axes == ("embed",) else (*_ROWS, *axes)
