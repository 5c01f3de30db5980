"""What a pipeline costs whose stages wait for each other only: its bubble and the microbatches it keeps.

Other stacks run so; ours is in `lockstep`.

Sources: Narayanan et al. 2021 (arXiv:2104.04473, section 2.2: 1F1B, interleaved), Korthikanti et al. 2022 (appendix B:
memory of interleaving), Qi et al. 2023 (arXiv:2401.10241: ZB-H1).
"""

from jaxscale.planner.formula import Formula, Number, smaller
from jaxscale.planner.layout import Schedule
from jaxscale.planner.sizes import Mesh


def bubble_seconds(schedule: Schedule, mesh: Mesh, forward: Formula, backward: Formula) -> Formula:
    """Idle time of a device in a step, of stages that take `forward` and `backward` seconds a microbatch.

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


def microbatches_in_flight(schedule: Schedule, mesh: Mesh) -> Formula:
    """How many microbatches the first stage keeps activations of, in units of all its layers."""
    if schedule == "none":
        return Number(1)
    if schedule == "gpipe":
        return mesh.microbatches
    deep = smaller(mesh.pipeline, mesh.microbatches)
    if schedule == "interleaved":
        return deep * (1 + (mesh.pipeline - 1) / (mesh.pipeline * mesh.virtual_stages))
    return deep
