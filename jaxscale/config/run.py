"""The configuration of a run: six sections and a name."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from jaxscale.config.data_section import DataSection
from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.config.run_sections import CheckpointSection, TelemetrySection, TrainingSection
from jaxscale.config.section import Section


def _plan_kind(value: object) -> str:
    return "auto" if isinstance(value, str) else "plan"


PlanChoice = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[Plan, Tag("plan")],
    Discriminator(_plan_kind),
]


class RunConfig(Section):
    """Everything that determines a run."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run directory"
    )
    model: ModelSection = Field(description="architecture, or a builder of one's own")
    data: DataSection = Field(DataSection(), description="text, tokenizer, rows")
    training: TrainingSection = Field(description="steps, batch, optimizer, evaluation")
    plan: PlanChoice = Field(
        "auto", description="auto, or axis sizes and execution choices by hand"
    )
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="when and which")
    telemetry: TelemetrySection = Field(
        TelemetrySection(), description="metrics, trackers, profiles"
    )
