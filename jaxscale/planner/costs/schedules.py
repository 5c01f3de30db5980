"""What a pipeline costs whose stages wait for each other only: its bubble and the microbatches it keeps.

Other stacks run so; ours is in `lockstep`.

Sources: Narayanan et al. 2021 (arXiv:2104.04473, section 2.2: 1F1B, interleaved), Korthikanti et al. 2022 (appendix B:
memory of interleaving), Qi et al. 2023 (arXiv:2401.10241: ZB-H1).
"""

from jaxscale.planner.model.sizes import Mesh, Sizes
from jaxscale.planner.vocabulary.formula import (
    Formula,
    Number,
    if_less,
    larger,
    rounded_up,
    smaller,
)
from jaxscale.planner.vocabulary.layout import Schedule
from jaxscale.planner.vocabulary.stack import Partition

# The embedding's and the head's.
_TABLES = 2


def bubble_seconds(schedule: Schedule, mesh: Mesh, forward: Formula, backward: Formula) -> Formula:
    """Idle time of a device in a step, of stages that take `forward` and `backward` seconds a microbatch.

    Where the last one takes longer these are the others: the pipeline fills and drains through them.

    ZB-H1 fills two thirds: a backward pass is half input gradients, which the next stage waits for, and half weight
    gradients, which can wait; (p - 1) (F + B - 2 W) with B = 2 W.
    """
    before = mesh.pipeline - 1
    if schedule == "none":
        return Number(0)
    if schedule == "interleaved":
        return before / mesh.virtual_stages * (forward + backward)
    if schedule == "zb-h1":
        return before * forward
    return before * (forward + backward)


def slowest_stage(partition: Partition, sizes: Sizes, layer: Formula, head: Formula) -> Formula:
    """Seconds of a pass of the slowest stage, of so many seconds a layer and for the head (see `Stack.partition`)."""
    pipeline, most = sizes.mesh.pipeline, full_layers(partition, sizes)
    if partition == "shared":
        return larger(most * layer, (sizes.num_layers * layer + head) / pipeline)
    if partition == "equal":
        return most * layer + head
    left = sizes.num_layers - (pipeline - 1) * most
    # With each table in the place of a layer the first stage has one layer less, too.
    last = if_less(left, most - _TABLES, left, if_less(left, most, most - 1, most))
    return larger(most * layer, last * layer + head)


def other_stages(partition: Partition, sizes: Sizes, layer: Formula, head: Formula) -> Formula:
    """Seconds of a pass of the stages before the last, which a pipeline fills and drains through."""
    if partition == "shared":
        return slowest_stage(partition, sizes, layer, head)
    return full_layers(partition, sizes) * layer


def full_layers(partition: Partition, sizes: Sizes) -> Formula:
    """Layers of the fullest stage."""
    if partition != "slots":
        return sizes.stage_layers
    whole = Number(sizes.num_layers, "layers") / sizes.mesh.pipeline
    slots = (sizes.num_layers + _TABLES) / sizes.mesh.pipeline
    return _if_divides(whole, whole, _if_divides(slots, slots, sizes.stage_layers))


def _if_divides(quotient: Formula, value: Formula, otherwise: Formula) -> Formula:
    return if_less(quotient, rounded_up(quotient), otherwise, value)


def microbatches_in_flight(schedule: Schedule, mesh: Mesh) -> Formula:
    """How many microbatches the first stage keeps activations of, in units of all its layers."""
    if schedule == "none":
        return Number(1)
    if schedule == "gpipe":
        return mesh.microbatches
    deep = smaller(mesh.pipeline, mesh.microbatches)
    if schedule == "interleaved":
        turns = 1 + (mesh.pipeline - 1) / (mesh.pipeline * mesh.virtual_stages)
        return smaller(deep * turns, mesh.microbatches)
    return deep
