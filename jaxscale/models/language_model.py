"""What training, evaluation and generation ask of a model: the user's own modules implement it too."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Int


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model that can be asked for hidden states, so that the loss never forms all logits at once.

    logit_softcap: logits become cap * tanh(logit / cap); None for no cap. The loss applies it.
    positions: place of each token in its document; None counts from the start of each segment.
    segment_ids: document of each token in a packed row (0 for padding); None for one document a row.
    """

    logit_softcap: float | None

    def hidden(
        self,
        tokens: Int[Array, "batch sequence"],
        positions: Int[Array, "#batch sequence"] | None = None,
        segment_ids: Int[Array, "batch sequence"] | None = None,
    ) -> Float[Array, "batch sequence embed"]:
        """States after the final norm."""
        ...

    def output_table(self) -> Float[Array, "vocab embed"]:
        """Logits are the hidden states times its transpose."""
        ...
