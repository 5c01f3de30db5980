"""The plan: how a model is laid over devices. Plain data, written by hand or proposed by the planner."""

from typing import Literal

from pydantic import Field, field_validator

from jaxscale.config.section import Section

# Outermost first: neighbours on the fastest links belong to the last axis.
MESH_AXES = ("pipeline", "data", "fsdp", "tensor")

Precision = Literal["auto", "float32", "bfloat16"]
Remat = Literal["none", "full", "dots", "minimal", "offload"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zb-h1"]
# What `kernels` can say of all ops at once. The last two run Pallas kernels in its interpreter, on CPU: for tests.
Kernels = Literal["auto", "xla", "pallas", "interpret_tpu", "interpret_gpu"]
KERNEL_OPS = (
    "attention",
    "fp8_matmul",
    "glu",
    "linear_cross_entropy",
    "matmul",
    "ragged_matmul",
)


class Plan(Section):
    """Mesh axis sizes and how each step runs on the mesh. The product of the axis sizes is the number of devices.

    Where no axis is named at all, the attached devices decide, as for `plan: auto`.
    """

    pipeline: int = Field(
        1, ge=1, description="stages that the layers are dealt out to, each on its own devices"
    )
    schedule: Schedule = Field(
        "1f1b", description="order in which the stages of a pipeline run microbatches"
    )
    virtual_stages: int = Field(
        1, ge=1, description="chunks of layers a pipeline stage holds (schedule interleaved)"
    )
    stage_layers: list[int] = Field(
        [],
        description="layers of each chunk in the model's order (empty: balanced, embedding and head counted)",
    )
    data: int = Field(
        1, ge=1, description="replicas of the model, each on its own rows of the batch"
    )
    fsdp: int = Field(
        1,
        ge=1,
        description="devices that share parameters and optimizer state, each on its own rows",
    )
    tensor: int = Field(1, ge=1, description="devices that split every matrix product of a layer")
    microbatches: int = Field(1, ge=1, description="passes whose gradients are added up in a step")
    remat: Remat = Field("none", description="what the backward pass recomputes instead of keeping")
    precision: Precision = Field(
        "auto",
        description="dtype of the forward pass (auto: bfloat16 on GPU and TPU, float32 on CPU)",
    )
    layer_unroll: int = Field(
        0,
        ge=0,
        description="layers per iteration of the layer scan (0: up to 16 on one CPU device without remat, else 1)",
    )
    kernels: Kernels | dict[str, str] = Field(
        {}, description="auto, xla or pallas for all ops; or implementation by op, the others auto"
    )
    rules: dict[str, str | list[str] | None] = Field(
        {}, description="logical axis -> mesh axes, over the built-in table"
    )

    compiler_options: dict[str, str | bool | int | float | None] = Field(
        {},
        description="XLA option -> value for the train step, over jaxscale's own; null: without that one of them",
    )

    @field_validator("kernels")
    @classmethod
    def _known_ops(cls, kernels: str | dict[str, str]) -> str | dict[str, str]:
        unknown = [] if isinstance(kernels, str) else sorted(set(kernels) - set(KERNEL_OPS))
        if unknown:
            ops = ", ".join(KERNEL_OPS)
            raise ValueError(f"no op is called {', '.join(unknown)}; there are {ops}")
        return kernels

    @property
    def mesh_shape(self) -> dict[str, int]:
        """Axis name -> size, outermost first."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def num_devices(self) -> int:
        return self.pipeline * self.data * self.fsdp * self.tensor

    @property
    def batch_shards(self) -> int:
        """In how many parts the rows of a microbatch are split."""
        return self.data * self.fsdp
