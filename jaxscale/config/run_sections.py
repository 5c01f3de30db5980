"""Training, checkpoint and telemetry sections."""

from typing import Literal, Self

from pydantic import Field, model_validator

from jaxscale.config.limits import LARGEST_COUNT
from jaxscale.config.optimizer_section import OptimizerSection, ScheduleSection
from jaxscale.config.section import Section


class TrainingSection(Section):
    """How long, on what batches, with which optimizer and loss; when to evaluate and sample."""

    steps: int = Field(ge=1, description="optimizer steps in the whole run")
    global_batch: int = Field(
        ge=1,
        le=LARGEST_COUNT,
        description="sequences per optimizer step, over all devices and microbatches",
    )
    seed: int = Field(0, ge=0, description="seed of parameters, batches and samples")
    optimizer: OptimizerSection = Field(OptimizerSection(), description="update rule")
    schedule: ScheduleSection = Field(ScheduleSection(), description="learning rate over the run")
    clip_norm: float | None = Field(
        1.0, gt=0, description="largest global gradient norm (null: never clipped)"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of averaged parameters (null: none kept)"
    )
    z_loss: float = Field(0.0, ge=0, description="weight of the squared log-normalizer in the loss")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="probability spread over the whole vocabulary"
    )
    loss_chunk: int = Field(
        1024, ge=1, description="tokens per device whose logits exist at one time"
    )
    eval_every: int = Field(0, ge=0, description="steps between evaluations (0: only at the end)")
    eval_batches: int = Field(16, ge=0, description="batches per evaluation (0: the whole set)")
    sample_every: int = Field(
        0, ge=0, description="steps between text samples (0: only at the end)"
    )
    sample_tokens: int = Field(64, ge=0, description="tokens per text sample (0: no samples)")
    sample_prompts: list[str] = Field(["The "], description="prompts of the text samples")
    on_bad_step: Literal["stop", "skip", "rollback"] = Field(
        "stop", description="what a loss or gradient that is not finite, or a spike, leads to"
    )
    loss_spike: float | None = Field(
        None, gt=1, description="multiple of the median of recent losses that is bad (null: none)"
    )
    hang_seconds: float | None = Field(
        900.0, gt=0, description="seconds without a step that end the run as hung (null: never)"
    )
    start_seconds: float | None = Field(
        7200.0,
        gt=0,
        description="seconds without a sign before the first step that end the run as hung (null: never)",
    )
    self_test: bool = Field(
        False, description="whether devices are compared with each other before the first step"
    )

    @model_validator(mode="after")
    def _spikes_cannot_be_skipped(self) -> Self:
        if self.loss_spike is not None and self.on_bad_step == "skip":
            raise ValueError(
                "loss_spike is seen when the update is made, too late to skip it; set on_bad_step to rollback or stop"
            )
        return self


class CheckpointSection(Section):
    """When checkpoints are written and which are kept."""

    directory: str = Field(
        "checkpoints", description="where they are kept: below the run, or a path, gs:// or s3://"
    )
    every: int = Field(1000, ge=0, description="steps between checkpoints (0: only at the end)")
    keep_last: int = Field(3, ge=1, description="newest checkpoints kept")
    keep_every: int | None = Field(
        None, ge=1, description="checkpoints at multiples of this are kept for ever"
    )
    keep_best: int = Field(0, ge=0, description="checkpoints kept by their evaluation loss")


class ProfileSection(Section):
    """An XProf trace of a few steps."""

    start: int = Field(ge=1, description="first profiled step of this process")
    steps: int = Field(3, ge=1, description="profiled steps")


class TelemetrySection(Section):
    """What is measured and where it goes. `metrics.jsonl` and `report.html` are always written."""

    log_every: int = Field(10, ge=1, description="steps between log lines")
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio", "opentelemetry"]] = Field(
        ["tensorboard"], description="services that receive the metrics"
    )
    flops: Literal["causal", "full"] = Field("causal", description="how attention counts in MFU")
    profile: ProfileSection | None = Field(None, description="steps to trace (null: none)")
    prometheus_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of each process's /metrics; those of one machine take the next ones (null: none)",
    )
    prometheus_host: str = Field(
        "127.0.0.1", description="address that /metrics listens on (0.0.0.0: everybody may read)"
    )
