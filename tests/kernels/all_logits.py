"""Llama 3.2 1B of two layers that shows the trainer only its logits, so that all of them exist at one time."""

from pathlib import Path

import jax
from flax import nnx

from jaxscale.config.loading import load_model
from jaxscale.models.families import resolve
from jaxscale.models.transformer import Transformer

LAYERS = ["model.num_layers=2"]
LLAMA = Path(__file__).parents[2] / "configs/models/llama3.2-1b.yaml"


class AllLogits(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.llama = Transformer(resolve(load_model(LLAMA, LAYERS)[0]), rngs)

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        return self.llama(tokens, positions, segment_ids)
