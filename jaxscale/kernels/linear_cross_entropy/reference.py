"""The loss as its definition: all logits, then the formulas. Slow, and obviously right."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.linear_cross_entropy.sums import LossOptions, LossSums


def reference_loss(
    hidden: Float[Array, "*rows embed"],
    table: Float[Array, "vocab embed"],
    targets: Int[Array, "*rows"],
    options: LossOptions,
) -> LossSums:
    """Loss sums in fp32, or wider where the inputs are; differentiable by JAX."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.einsum("...e,ve->...v", hidden, table, preferred_element_type=wide)
    if options.softcap is not None:
        logits = options.softcap * jnp.tanh(logits / options.softcap)
    logits = logits[..., : options.num_real_vocab]
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    valid = targets != options.ignore
    wanted = jnp.where(valid, targets, 0)[..., None]
    nll = log_normalizer - jnp.take_along_axis(logits, wanted, axis=-1)[..., 0]
    evenly = log_normalizer - logits.mean(axis=-1)
    smoothed = (1 - options.label_smoothing) * nll + options.label_smoothing * evenly
    loss = smoothed + options.z_loss * log_normalizer**2
    return LossSums(
        loss_sum=jnp.where(valid, loss, 0).sum(),
        nll_sum=jnp.where(valid, nll, 0).sum(),
        weight=valid.sum().astype(wide),
    )
