"""Time and memory of every candidate of one remat policy, schedule and ZeRO stage, as terms over mesh columns."""

from dataclasses import dataclass

from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.calibration import Efficiency
from jaxscale.planner.communication import Compute, communication_terms
from jaxscale.planner.compute import Part, Speeds, head_part, layer_parts
from jaxscale.planner.formula import Formula, Named, Number, larger, total
from jaxscale.planner.layout import Remat, Schedule, ZeroStage
from jaxscale.planner.lockstep.elements import stored_elements
from jaxscale.planner.lockstep.memory import lockstep_memory_terms
from jaxscale.planner.lockstep.setting import Pipeline
from jaxscale.planner.lockstep.stages import stages_of
from jaxscale.planner.lockstep.time import lockstep_time_terms
from jaxscale.planner.memory import SHARDED, memory_terms
from jaxscale.planner.model_shape import ModelShape
from jaxscale.planner.parameters import ParameterGroup, local_elements
from jaxscale.planner.passes import backward_seconds, compute_terms
from jaxscale.planner.schedules import bubble_seconds
from jaxscale.planner.sizes import Sizes, mesh_columns, sizes_of
from jaxscale.planner.stack import Stack
from jaxscale.planner.terms import Term
from jaxscale.planner.workload import Workload

# Read and write the parameter, both moments, the gradient: 4 bytes each in AdamW with fp32 state.
OPTIMIZER_TRAFFIC = 30


@dataclass(frozen=True)
class Choice:
    """What is not a number: every candidate of a table shares it. stage_layers: where a plan says them."""

    remat: Remat
    schedule: Schedule
    zero: ZeroStage
    stage_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Costs:
    """Terms that add up to the seconds of a step, and terms that add up to the bytes of the fullest device."""

    time: tuple[Term, ...]
    memory: tuple[Term, ...]


def costs(
    workload: Workload,
    groups: tuple[ParameterGroup, ...],
    cluster: Cluster,
    stack: Stack,
    efficiency: Efficiency,
    choice: Choice,
) -> Costs:
    shape = workload.shape
    sizes = sizes_of(workload, mesh_columns(), sequence_parallel=stack.sequence_parallel)
    speeds = speeds_of(cluster, stack, efficiency)
    if stack.lockstep and choice.schedule != "none":
        return _in_lockstep(shape, groups, sizes, stack, speeds, choice)
    memory = memory_terms(shape, groups, sizes, stack, choice.remat, choice.schedule, choice.zero)
    time = [
        *_passes(shape, groups, sizes, stack, speeds, choice),
        _optimizer(local_elements(groups, sizes.mesh, SHARDED), sizes, speeds, choice.zero),
        _accumulation(groups, sizes, speeds),
        Term("host", Number(stack.host_seconds, "s")),
    ]
    return Costs(tuple(time), tuple(memory))


def _in_lockstep(
    shape: ModelShape,
    groups: tuple[ParameterGroup, ...],
    sizes: Sizes,
    stack: Stack,
    speeds: Speeds,
    choice: Choice,
) -> Costs:
    """A pipeline of our own trainer."""
    stages = stages_of(sizes.num_layers, groups, choice.stage_layers)
    pipeline = Pipeline(shape, groups, sizes, stack, stages, choice.remat, choice.schedule)
    parts = layer_parts(shape, sizes, stack, speeds)
    head = head_part(shape, sizes, stack, speeds)
    time = [
        *lockstep_time_terms(pipeline, speeds, parts, head),
        _optimizer(stored_elements(pipeline, SHARDED), sizes, speeds, choice.zero),
        Term("host", Number(stack.host_seconds, "s")),
    ]
    return Costs(tuple(time), tuple(lockstep_memory_terms(pipeline, choice.zero)))


def _passes(
    shape: ModelShape,
    groups: tuple[ParameterGroup, ...],
    sizes: Sizes,
    stack: Stack,
    speeds: Speeds,
    choice: Choice,
) -> list[Term]:
    """What stages do and send, how uneven they are, and how long they wait."""
    parts = layer_parts(shape, sizes, stack, speeds)
    head = head_part(shape, sizes, stack, speeds)
    compute = compute_terms(parts, head, sizes, stack, choice.remat)
    stage = _stage(parts, head, sizes, stack, choice)
    mean = total([term.amount for term in compute]) / sizes.mesh.microbatches
    imbalance = sizes.mesh.microbatches * larger(stage.forward + stage.backward - mean, 0)
    behind = Compute(
        all=Named(sizes.mesh.microbatches * mean, "s of compute"),
        last_backward=Named(stage.backward, "s of the last backward pass"),
    )
    bubble = bubble_seconds(choice.schedule, sizes.mesh, stage.forward, stage.backward)
    return [
        *compute,
        *communication_terms(shape, groups, sizes, stack, choice.remat, behind),
        Term("uneven stages", imbalance),
        Term("pipeline bubble", bubble),
    ]


def speeds_of(cluster: Cluster, stack: Stack, efficiency: Efficiency) -> Speeds:
    peak = cluster.chip.peak_flops
    reached = efficiency.products * stack.efficiency
    # Fused attention multiplies in 16 bits whatever the weights' products do.
    wide = Number(peak["bfloat16" if stack.compute_bytes < 4 else "float32"], "FLOP/s")
    attention = reached * stack.attention_speed
    return Speeds(
        flops=Number(peak[stack.matmul_dtype], "FLOP/s") * Number(reached, "reached"),
        attention_forward=wide * Number(attention * efficiency.attention_forward, "reached"),
        attention_backward=wide * Number(attention * efficiency.attention_backward, "reached"),
        multiprocessors=cluster.chip.multiprocessors,
        memory=Number(cluster.chip.hbm_bandwidth, "B/s") * Number(efficiency.memory, "reached"),
    )


def _stage(parts: list[Part], head: Part, sizes: Sizes, stack: Stack, choice: Choice) -> Part:
    """The slowest stage: with equal layers the last, which has the head too; else the load is shared layer by layer."""
    forward = total([part.forward for part in parts])
    backward = total([backward_seconds(part, choice.remat, stack) for part in parts])
    if not stack.balanced:
        return Part(
            "stage",
            Named(sizes.stage_layers * forward + head.forward, "s forward of a stage"),
            Named(sizes.stage_layers * backward + head.backward, "s backward of a stage"),
        )
    pipeline, layers = sizes.mesh.pipeline, Number(sizes.num_layers, "layers")
    return Part(
        "stage",
        Named(
            larger(sizes.stage_layers * forward, (layers * forward + head.forward) / pipeline),
            "s forward of a stage",
        ),
        Named(
            larger(sizes.stage_layers * backward, (layers * backward + head.backward) / pipeline),
            "s backward of a stage",
        ),
    )


def _optimizer(elements: Formula, sizes: Sizes, speeds: Speeds, zero: ZeroStage) -> Term:
    local = Named(elements, "parameters here")
    own = local / sizes.mesh.data if zero >= 1 else local
    return Term("optimizer", own * Number(OPTIMIZER_TRAFFIC, "B each") / speeds.memory)


def _accumulation(groups: tuple[ParameterGroup, ...], sizes: Sizes, speeds: Speeds) -> Term:
    """Every microbatch but the first adds its fp32 gradients to the sum: two reads and a write."""
    local = Named(local_elements(groups, sizes.mesh, SHARDED), "parameters here")
    return Term(
        "adding gradients",
        (sizes.mesh.microbatches - 1) * local * Number(12, "B each") / speeds.memory,
    )
