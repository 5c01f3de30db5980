"""What a loss adds up, and over what."""

from dataclasses import dataclass

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSums:
    """fp32 sums over the tokens of a batch that have a target.

    loss_sum: what is minimized, smoothing and z-loss included. nll_sum: negative log-likelihood alone, in nats.
    weight: number of tokens with a target. Means are the caller's, who knows the whole batch.
    """

    loss_sum: jax.Array
    nll_sum: jax.Array
    weight: jax.Array


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """ignore: target of a token that counts nowhere. z_loss: weight of the squared log-normalizer (arXiv:2204.02311).

    label_smoothing: probability spread evenly over the vocabulary (arXiv:1512.00567). softcap: logits become
    cap * tanh(logit / cap). num_real_vocab: rows of the table beyond it are padding and have probability 0.
    """

    ignore: int = -1
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    softcap: float | None = None
    num_real_vocab: int | None = None
