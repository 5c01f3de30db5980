"""What the planner expects the compiler to make of a plan, in the compiler's own measures."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.verification.executed_flops import executed_flops
from jaxscale.planner.vocabulary.layout import Layout
from jaxscale.planner.vocabulary.prediction import Prediction
from jaxscale.planner.vocabulary.stack import Stack

_STATE = ("parameters", "optimizer state")


@dataclass(frozen=True)
class Expected:
    """Of one device. state_bytes: parameters and optimizer. dot_flops: executed in a step.

    wire_bytes: what it takes from others in a step, by mesh axis.
    """

    state_bytes: float
    peak_bytes: float
    dot_flops: float
    wire_bytes: Mapping[str, float]


def expected(workload: Workload, layout: Layout, prediction: Prediction, stack: Stack) -> Expected:
    """Raises nothing; for dense models, which are what the trainer runs."""
    wire: dict[str, float] = {}
    for line in prediction.time:
        if line.axis and line.moved_bytes:
            wire[line.axis] = wire.get(line.axis, 0.0) + line.moved_bytes
    return Expected(
        state_bytes=sum(line.value for line in prediction.memory if line.component in _STATE),
        peak_bytes=prediction.peak_bytes,
        dot_flops=executed_flops(workload, layout, stack),
        wire_bytes=wire,
    )


def compiled_peak(
    cluster: Cluster, argument_bytes: float, temp_bytes: float, peak_bytes: float
) -> float:
    """The compiler's peak; its CPU backend counts arguments alone as that, so there all temporaries are added."""
    return argument_bytes + temp_bytes if cluster.kind == "cpu" else peak_bytes
