"""The quantities that every formula of one model is written in."""

from dataclasses import dataclass

from jaxscale.models.flops import keys_seen
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.vocabulary.formula import Column, Formula, Named, Number, rounded_up
from jaxscale.planner.vocabulary.layout import AXES


@dataclass(frozen=True)
class Mesh:
    """Axis sizes of the candidates, and what the batch is cut into."""

    pipeline: Formula
    data: Formula
    fsdp: Formula
    expert: Formula
    context: Formula
    tensor: Formula
    microbatches: Formula
    virtual_stages: Formula

    @property
    def batch_shards(self) -> Formula:
        """Devices that have rows of their own."""
        return self.data * self.fsdp * self.expert

    @property
    def beside_fsdp(self) -> Formula:
        """Devices of all other axes: 1 where `fsdp` is the only one."""
        return self.data * self.pipeline * self.expert * self.context * self.tensor


def mesh_columns() -> Mesh:
    sizes = {axis: Column(axis) for axis in AXES}
    return Mesh(
        **sizes, microbatches=Column("microbatches"), virtual_stages=Column("virtual_stages")
    )


@dataclass(frozen=True)
class Sizes:
    """tokens: of one microbatch on one device. stage_layers: layers of a device. keys: that a query sees, mean of the
    layers.

    share: 1 / tensor where activations between split products are split too, else 1. summed: devices of a group over
    which gradients are summed where they would be scattered (0: none). splits_logits: the loss splits the vocabulary
    over `fsdp`, too.
    """

    mesh: Mesh
    tokens: Formula
    stage_layers: Formula
    num_layers: int
    keys: Formula
    all_keys: Formula
    share: Formula
    summed: int = 0
    splits_logits: bool = False


def sizes_of(workload: Workload, mesh: Mesh, *, sequence_parallel: bool) -> Sizes:
    shape = workload.shape
    batch = Number(workload.global_batch, "sequences")
    rows = batch / (mesh.batch_shards * mesh.microbatches)
    length = Number(workload.sequence, "tokens each")
    share = 1 / mesh.tensor if sequence_parallel else Number(1)
    return Sizes(
        mesh=mesh,
        tokens=Named(rows * length / mesh.context, "tokens"),
        stage_layers=Named(rounded_up(Number(shape.layers, "layers") / mesh.pipeline), "layers"),
        num_layers=shape.layers,
        keys=Number(mean_keys(shape, workload.sequence), "keys seen"),
        all_keys=Number(workload.sequence, "keys"),
        share=Named(share, "of the sequence"),
    )


def mean_keys(shape: ModelShape, sequence: int) -> float:
    """Keys that a causal query sees, over all layers (windows respected)."""
    windows = [shape.windows[layer % len(shape.windows)] for layer in range(shape.layers)]
    return sum(keys_seen(sequence, window) for window in windows) / shape.layers
