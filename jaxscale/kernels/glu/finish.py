"""What happens to the sums of a gated MLP's two kernels, in fp32 and elementwise: shared by every implementation."""

import jax

from jaxscale.kernels.activations import WITH_SLOPE, activate
from jaxscale.kernels.tiles import Finish


def finish_up(activation: str) -> Finish:
    """(gate, up) -> (h, gate, up)."""

    def finish(sums: tuple[jax.Array, ...], _: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        gate, up = sums
        return activate(activation, gate) * up, gate, up

    return finish


def finish_down_gradient(activation: str) -> Finish:
    """(gradient of h), (gate, up) -> (gradients of gate and of up, h)."""

    def finish(sums: tuple[jax.Array, ...], kept: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        (to_hidden,), (gate, up) = sums, kept
        activated, slope = WITH_SLOPE[activation](gate)
        return to_hidden * up * slope, to_hidden * activated, activated * up

    return finish
