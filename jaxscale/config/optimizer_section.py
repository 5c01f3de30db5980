"""Optimizer and learning-rate schedule sections."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from jaxscale.config.section import Section

# Fields that an optimizer reads beside `name`, `learning_rate` and `weight_decay`.
_READS: dict[str, frozenset[str]] = {
    "adamw": frozenset({"beta1", "beta2", "epsilon"}),
    "adafactor": frozenset(),
    "lion": frozenset({"beta1", "beta2"}),
    "muon": frozenset({"momentum", "beta1", "beta2", "epsilon", "adam_learning_rate"}),
}
_OPTIONAL = frozenset[str]().union(*_READS.values())
# Chen et al. 2023, algorithm 2: Lion's buffer is its only memory and has to reach further back.
_LION_BETA2 = 0.99


class OptimizerSection(Section):
    """The update rule. `weight_decay` is decoupled and scaled by the learning rate in all four."""

    name: Literal["adamw", "adafactor", "lion", "muon"] = Field("adamw", description="update rule")
    learning_rate: float = Field(
        3e-4,
        gt=0,
        description="peak rate, parameter units per step (adafactor: in RMS of the parameter)",
    )
    weight_decay: float = Field(
        0.1, ge=0, description="share of a matrix removed per step, in units of the learning rate"
    )
    beta1: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="decay per step of the averaged gradient (adamw, lion, muon's adam)",
    )
    beta2: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="decay per step of adam's squared gradient, lion's buffer (lion: default 0.99)",
    )
    epsilon: float = Field(
        1e-8,
        gt=0,
        description="added to adam's root mean square, gradient units (adamw, muon's adam)",
    )
    momentum: float = Field(
        0.95, ge=0, lt=1, description="decay per step of muon's Nesterov momentum"
    )
    adam_learning_rate: float | None = Field(
        None, gt=0, description="muon's peak rate for non-matrices (null: learning_rate)"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_by_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name") == "lion":
            return {"beta2": _LION_BETA2, **values}
        return values

    @model_validator(mode="after")
    def _only_what_is_read(self) -> Self:
        reads = _READS[self.name]
        ignored = sorted(
            name
            for name in _OPTIONAL - reads
            if getattr(self, name) != type(self).model_fields[name].default
        )
        if ignored:
            raise ValueError(
                f"optimizer {self.name!r} does not read {', '.join(ignored)}: remove "
                f"{'it' if len(ignored) == 1 else 'them'} (it reads "
                f"{', '.join(sorted(reads | {'learning_rate', 'weight_decay'}))})"
            )
        return self


class ScheduleSection(Section):
    """Learning rate over the run: up from 0 to the peak, then down to a fraction of it."""

    name: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine", description="shape after the warmup (wsd: constant, then a linear decay)"
    )
    warmup_steps: int = Field(
        0, ge=0, description="optimizer steps of linear rise from 0 to the peak"
    )
    final_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="rate of the last step, as a share of the peak (constant: unused)",
    )
    decay_fraction: float = Field(
        0.1, gt=0, le=1, description="share of all steps that wsd spends decaying (others: unused)"
    )
