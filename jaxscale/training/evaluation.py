"""Loss, perplexity and bits per byte of a model on a token store."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from jaxscale.config.run_sections import TrainingSection
from jaxscale.data.packing import IGNORE
from jaxscale.kernels.linear_cross_entropy.api import LossSums
from jaxscale.models.context import use_forward_context
from jaxscale.models.description import Blueprint, Params, bind
from jaxscale.parallel.placement import Placement
from jaxscale.training.batches import place_batch
from jaxscale.training.gradients import microbatches, num_passes
from jaxscale.training.losses import Batch, next_token_loss
from jaxscale.training.pipeline import pipelined_loss
from jaxscale.training.precision import cast, compute_dtype

# Batches that the devices are given before the first of them is waited for.
_AHEAD = 3

EvaluationStep = Callable[[Params, Batch], LossSums]


@dataclass(frozen=True)
class Evaluation:
    """loss: nats per predicted token. num_bytes: UTF-8 bytes of the predicted tokens, where they are known."""

    loss: float
    num_tokens: int
    num_bytes: int | None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable across tokenizers: total nats / (ln 2 x bytes of text)."""
        if not self.num_bytes:
            return None
        return self.loss * self.num_tokens / (math.log(2) * self.num_bytes)

    def record(self) -> dict[str, float | None]:
        """The evaluation as it is logged."""
        return {
            "eval_loss": self.loss,
            "eval_perplexity": self.perplexity,
            "eval_bits_per_byte": self.bits_per_byte,
            "eval_tokens": self.num_tokens,
        }


def make_evaluation_step(
    model: Blueprint, placement: Placement, training: TrainingSection
) -> EvaluationStep:
    """Loss sums of one batch, without smoothing or penalties, compiled once; in passes as long as a step's."""
    dtype = compute_dtype(placement.plan.precision, placement.platform)
    plain = training.model_copy(update={"z_loss": 0.0, "label_smoothing": 0.0})

    def one_pass(params: Params, batch: Batch) -> LossSums:
        with use_forward_context(placement.forward_context()):
            return next_token_loss(bind(model, params), batch, placement, plain)

    def all_passes(params: Params, batch: Batch) -> LossSums:
        rows = batch["tokens"].shape[0] // placement.plan.batch_shards
        passes = microbatches(batch, num_passes(rows, placement.plan.microbatches))
        held = cast(params, dtype)
        sums = jax.lax.map(lambda rows: one_pass(held, rows), passes)
        total: LossSums = jax.tree.map(lambda of_passes: of_passes.sum(0), sums)
        return total

    pipelined = placement.stages is not None
    step = jax.jit(pipelined_loss(model, placement, plain) if pipelined else all_passes)

    def run(params: Params, batch: Batch) -> LossSums:
        with jax.set_mesh(placement.mesh):
            sums: LossSums = step(params, batch)
        return sums

    return run


def evaluate(
    step: EvaluationStep,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    placement: Placement,
    token_bytes: np.ndarray | None,
    alive: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Sums over all batches (whole ones: a single process reads every row).

    token_bytes: UTF-8 bytes of each token of the vocabulary, or None where tokens are not made of bytes.
    alive: called behind each batch that the devices have done.
    """
    sums: list[LossSums] = []
    num_bytes = 0
    for batch in batches:
        rows, length = batch["tokens"].shape
        sharding = placement.sharding("batch", (rows, length), ("batch", "sequence"))
        sums.append(step(params, place_batch(batch, sharding, rows)))
        jax.block_until_ready(sums[-_AHEAD:][0])
        alive()
        targets = batch["targets"]
        num_bytes += (
            0 if token_bytes is None else int(token_bytes[targets[targets != IGNORE]].sum())
        )
    totals = jax.device_get(sums)
    num_tokens = sum(float(one.weight) for one in totals)
    loss = sum(float(one.nll_sum) for one in totals) / max(num_tokens, 1)
    return Evaluation(loss, int(num_tokens), None if token_bytes is None else num_bytes)
