"""The `model:` section: a family and its sizes, or a module of the user's own."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Family = Literal[
    "gpt2",
    "gpt3",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]

REQUIRED_SIZES = ("vocab_size", "max_positions", "num_layers", "embed_dim", "num_heads")


class RopeScalingSection(BaseModel):
    """Stretches rotary positions beyond the trained length.

    With `factor` alone linearly (Gemma 3), with all four keys by frequency (Llama 3.1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: PositiveFloat = Field(description="Positions are divided by this factor.")
    low_frequency_factor: PositiveFloat | None = Field(
        default=None,
        description="Wavelengths over original_positions / this are stretched in full (Llama 3).",
    )
    high_frequency_factor: PositiveFloat | None = Field(
        default=None,
        description="Wavelengths under original_positions / this stay as they are (Llama 3).",
    )
    original_positions: PositiveInt | None = Field(
        default=None, description="Trained length before stretching, in tokens (Llama 3)."
    )

    @model_validator(mode="after")
    def _by_frequency_or_not(self) -> Self:
        by_frequency = (
            self.low_frequency_factor,
            self.high_frequency_factor,
            self.original_positions,
        )
        given = [value for value in by_frequency if value is not None]
        if given and len(given) < len(by_frequency):
            raise ValueError(
                "low_frequency_factor, high_frequency_factor and original_positions go together: give all three, or "
                "only factor for linear scaling"
            )
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"low_frequency_factor {low} must be smaller than high_frequency_factor {high}"
            )
        return self


class ExpertsSection(BaseModel):
    """Routed MLPs in place of one (planned, not trained yet)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: PositiveInt = Field(description="Experts of a layer.")
    per_token: PositiveInt = Field(description="Experts that each token goes to.")
    mlp_dim: PositiveInt = Field(description="Width of one expert.")
    shared: NonNegativeInt = Field(default=0, description="Experts that every token goes to.")
    dense_layers: NonNegativeInt = Field(
        default=0, description="Leading layers with one MLP of width model.mlp_dim instead."
    )


class LatentAttentionSection(BaseModel):
    """Low-rank queries, keys and values (DeepSeek-V2; planned, not trained yet)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_rank: PositiveInt = Field(description="Width of compressed queries.")
    kv_rank: PositiveInt = Field(description="Width of compressed keys and values.")
    nope_dim: PositiveInt = Field(description="Width of a head's key without positions.")
    rope_dim: PositiveInt = Field(description="Width of a head's rotary key, shared by the heads.")
    value_dim: PositiveInt = Field(description="Width of a head's value.")


class ModelSection(BaseModel):
    """A decoder transformer by family and sizes, or `build`: a function that returns the user's own NNX module.

    A plain string stands for `{build: string}`. Keys left out take the family's value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    family: Family | None = Field(
        default=None, description="Preset that fills in every key left out, for example llama3."
    )
    vocab_size: PositiveInt | None = Field(
        default=None, description="Rows of the embedding table, tokens."
    )
    max_positions: PositiveInt | None = Field(
        default=None, description="Longest sequence the model is meant for, tokens."
    )
    num_layers: PositiveInt | None = Field(default=None, description="Transformer blocks.")
    embed_dim: PositiveInt | None = Field(default=None, description="Width of the residual stream.")
    num_heads: PositiveInt | None = Field(default=None, description="Query heads a layer.")
    num_kv_heads: PositiveInt | None = Field(
        default=None, description="Key and value heads a layer (default: num_heads)."
    )
    head_dim: PositiveInt | None = Field(
        default=None, description="Width of one head (default: embed_dim / num_heads)."
    )
    mlp_dim: PositiveInt | None = Field(
        default=None,
        description="Width of the MLP (default for gpt: 4 embed_dim; others must say).",
    )
    tied_embeddings: bool | None = Field(
        default=None, description="Whether the output projection is the embedding table."
    )
    norm_epsilon: PositiveFloat | None = Field(
        default=None, description="Added to the variance inside norms."
    )
    rope_base: PositiveFloat | None = Field(
        default=None, description="Base of the rotary frequencies (theta)."
    )
    rope_local_base: PositiveFloat | None = Field(
        default=None,
        description="Base of the rotary frequencies in sliding-window layers, where it differs.",
    )
    rope_scaling: RopeScalingSection | None = Field(
        default=None, description="Stretches rotary positions (layers without a window only)."
    )
    window: NonNegativeInt | None = Field(
        default=None,
        description="Sliding window: tokens that a query sees, itself included (0: everything).",
    )
    window_pattern: NonNegativeInt | None = Field(
        default=None,
        description="Every how-many-th layer sees everything (0: the window is everywhere).",
    )
    attention_softcap: NonNegativeFloat | None = Field(
        default=None, description="Attention scores become cap * tanh(score / cap) (0: no cap)."
    )
    logit_softcap: NonNegativeFloat | None = Field(
        default=None, description="Logits become cap * tanh(logit / cap) (0: no cap)."
    )
    query_scale: PositiveFloat | None = Field(
        default=None,
        description="Scores are divided by the square root of this number (default: head_dim).",
    )
    qkv_bias: bool | None = Field(
        default=None, description="Whether query, key and value projections have a bias."
    )
    qk_norm: bool | None = Field(
        default=None, description="Whether queries and keys are normalized per head (RMS)."
    )
    experts: ExpertsSection | None = Field(
        default=None, description="Routed MLPs (planned, not trained yet)."
    )
    latent_attention: LatentAttentionSection | None = Field(
        default=None, description="Low-rank attention (planned, not trained yet)."
    )
    init_from: str | None = Field(
        default=None,
        description="Weights to start from: a Hugging Face directory or a run; keys left out are as there.",
    )
    build: str | None = Field(
        default=None,
        description="Your own model: 'package.module:function' or 'file.py:function', called with rngs and args.",
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of `build`, by name."
    )

    @model_validator(mode="before")
    @classmethod
    def _string_is_a_builder(cls, value: object) -> object:
        return {"build": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _family_or_build(self) -> Self:
        if self.build is not None:
            self._check_build()
        elif self.family is not None or self.init_from is None:
            self._check_family()
        return self

    def _check_family(self) -> None:
        if self.family is None:
            raise ValueError(
                "give a family (for example llama3) with its sizes, or build: 'file.py:function'"
            )
        missing = [name for name in REQUIRED_SIZES if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a model of family {self.family} needs {', '.join(missing)}")
        if self.args:
            raise ValueError("args are for build; a family takes its sizes as keys of this section")

    @property
    def planned_only(self) -> bool:
        """Whether this is a model that the planner lays out and the trainer does not run yet."""
        return self.experts is not None or self.latent_attention is not None

    def _check_build(self) -> None:
        # A configuration in full, as runs keep it, names every key: only other values than the defaults say something.
        plain = type(self).model_fields
        extra = sorted(
            name
            for name in self.model_fields_set - {"build", "args"}
            if getattr(self, name) != plain[name].default
        )
        if extra:
            raise ValueError(
                f"with build, {', '.join(extra)} would be ignored: pass what your function takes under args"
            )
