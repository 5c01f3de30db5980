"""The next-token loss of a model on a batch, on one device or on a mesh."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import jax
from flax import nnx

from jaxscale.config.run_sections import TrainingSection
from jaxscale.kernels.linear_cross_entropy.api import LossOptions, LossSums, loss_from_logits
from jaxscale.models.language_model import LanguageModel
from jaxscale.parallel.placement import Placement
from jaxscale.training.sharded_loss import sharded_loss

Batch = Mapping[str, jax.Array]


def next_token_loss(
    module: nnx.Module, batch: Batch, placement: Placement, training: TrainingSection
) -> LossSums:
    """Sums over the valid targets of the batch, over every device of the mesh.

    A `LanguageModel` goes through the chunked loss: its logits never exist at one time. Any other module is called for
    its logits.
    """
    tokens, positions, segments = batch["tokens"], batch["positions"], batch["segment_ids"]
    options = loss_options(training, getattr(module, "logit_softcap", None))
    if isinstance(module, LanguageModel):
        hidden = module.hidden(tokens, positions, segments)
        loss = sharded_loss(placement, options, training.loss_chunk)
        return loss(hidden, module.output_table(), batch["targets"])
    as_function = cast("Callable[..., jax.Array]", module)
    logits = as_function(tokens, positions, segments)
    return loss_from_logits(logits, batch["targets"], replace(options, softcap=None))


def loss_options(training: TrainingSection, softcap: float | None) -> LossOptions:
    """What a run asks of its loss, and what the model does to its logits."""
    return LossOptions(
        z_loss=training.z_loss, label_smoothing=training.label_smoothing, softcap=softcap
    )
