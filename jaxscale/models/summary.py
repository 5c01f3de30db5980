"""A model in numbers: its parameters, bytes, and FLOPs per token."""

from dataclasses import dataclass

from jaxscale.config.model_section import ModelSection
from jaxscale.models.build import model_builder
from jaxscale.models.description import Description, blueprint
from jaxscale.models.families import resolve
from jaxscale.models.flops import TRAINING_FACTOR, FlopsTerm, flops_terms
from jaxscale.models.traced_flops import traced_training_flops_per_token

# Bytes a parameter in training: fp32 master and gradient, and AdamW's two fp32 moments.
TRAINING_BYTES_PER_PARAMETER = 16


@dataclass(frozen=True)
class ModelSummary:
    """terms: forward FLOPs per token by component. active: parameters that a token meets (all of them, when dense)."""

    description: Description
    sequence_length: int
    terms: tuple[FlopsTerm, ...]

    @property
    def total(self) -> int:
        """Number of parameters."""
        return sum(spec.size for spec in self.description.values())

    @property
    def active(self) -> int:
        """Parameters that take part in the forward pass of one token: all of them, as no layer is routed."""
        return self.total

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameters as they are stored."""
        return sum(spec.num_bytes for spec in self.description.values())

    @property
    def forward_flops(self) -> float:
        """Per token."""
        return sum(term.flops for term in self.terms)

    @property
    def training_flops(self) -> float:
        """Per token, forward and backward."""
        return TRAINING_FACTOR * self.forward_flops


def summarize(section: ModelSection, sequence_length: int | None) -> ModelSummary:
    """Describe the model of a section; no array is created.

    sequence_length: tokens that attention is counted for (default: all positions of the model, or 1024).
    """
    model = blueprint(model_builder(section))
    length = sequence_length or section.max_positions or 1024
    if section.build is None:
        terms = flops_terms(resolve(section), length)
    else:
        forward = traced_training_flops_per_token(model, length) / TRAINING_FACTOR
        terms = (FlopsTerm("all matrix products", forward, "counted in the traced forward pass"),)
    return ModelSummary(model.description, length, terms)
