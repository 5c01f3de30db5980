"""What every section of a configuration shares: frozen, and unknown keys are errors."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration. Sections are values: change one with `model_copy(update=...)`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
