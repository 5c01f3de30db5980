"""What the compiler made of a train step: bytes, products and collectives of one device, or why it does not fit.

The planner does not know the trainer. Whoever asks hands over a function that lowers a step.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax

from jaxscale.planner.hlo.branches import TickShares
from jaxscale.planner.hlo.collectives import Collective, collectives, plain
from jaxscale.planner.hlo.execution import Executed, executed
from jaxscale.planner.hlo.products import product_flops
from jaxscale.planner.hlo.text import parse_module
from jaxscale.planner.verification.refusal import DoesNotFit, read_refusal


@dataclass(frozen=True)
class CompiledFacts:
    """One device's part of a compiled program.

    argument_bytes, output_bytes, alias_bytes: as the compiler lays them out (TPUs pad to tiles); outputs that take the
    place of arguments are in alias_bytes. temp_bytes: the arena of everything else. peak_bytes: what lives at once, as
    the compiler counts it (on TPUs it can be less than arguments and temporaries together): compare both.
    dot_flops: 2 m n k of every matrix product that runs, loops multiplied; of a pipeline the mean stage's.
    opaque: library calls whose work cannot be counted, with their runs.
    unread_loops: loops whose trips could not be read; what is in them counts once.
    """

    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    peak_bytes: int
    dot_flops: float
    collectives: tuple[Collective, ...]
    opaque: tuple[tuple[str, float], ...] = ()
    unread_loops: int = 0

    @property
    def needed_bytes(self) -> int:
        """What the device must have for the program: arguments, temporaries, and outputs with a place of their own."""
        return self.argument_bytes + self.temp_bytes + self.output_bytes - self.alias_bytes


def compile_facts(
    lower: Callable[[], jax.stages.Lowered],
    mesh_shape: Mapping[str, int],
    *,
    available: float | None = None,
    shares: TickShares | None = None,
) -> CompiledFacts:
    """Lower, compile and read a step.

    shares: of a pipeline, how often its choices are made. available: bytes that a device gives a program. TPU programs
    are checked by their compiler itself; CUDA and CPU ones compile whatever they need, so they are checked against
    this. Raises DoesNotFit.
    """
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = read_refusal(str(error))
        if refusal is None:
            raise
        raise refusal from None
    facts = read_compiled(compiled, mesh_shape, shares)
    if available is not None and facts.needed_bytes > available:
        raise DoesNotFit(facts.needed_bytes, int(available), parts=_words(facts))
    return facts


def read_compiled(
    compiled: jax.stages.Compiled, mesh_shape: Mapping[str, int], shares: TickShares | None = None
) -> CompiledFacts:
    """mesh_shape: axis -> size, outermost first; their devices in order are those of the program.

    shares: of a pipeline. Without them a choice counts as if its longest branch always ran.
    """
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text()
    assert memory is not None, "this backend does not say how much memory its programs take"
    assert text is not None, "this backend does not print its programs"
    running = tuple(executed(parse_module(text), shares))
    return CompiledFacts(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        dot_flops=float(sum(each.times * flops for each, flops in _products(running))),
        collectives=collectives(running, mesh_shape),
        opaque=_opaque(running),
        unread_loops=_unread_loops(running),
    )


def device_bytes(tree: Any) -> int:
    """Bytes that the abstract arrays of a tree (`jax.ShapeDtypeStruct` with shardings) take on one device, unpadded."""
    return sum(_local_bytes(leaf) for leaf in jax.tree.leaves(tree))


def argument_parts(arguments: Mapping[str, Any]) -> dict[str, int]:
    """`device_bytes` of each named part of a step's arguments: parameters, optimizer, batch."""
    return {name: device_bytes(tree) for name, tree in arguments.items()}


def _local_bytes(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    size = leaf.dtype.itemsize
    for dim in shape:
        size *= dim
    return int(size)


def _products(running: Iterable[Executed]) -> Iterable[tuple[Executed, float]]:
    for each in running:
        flops = product_flops(each.computation, each.instruction)
        if flops is not None:
            yield each, flops


# Library calls that move, allocate or mark, and compute no products.
_HARMLESS = re.compile(
    r"AllocateBuffer|ConcatBitcast|SliceId|ZeroCrop|PrepareAsync\w*|Async\w*|Assume\w*|Sharding|SPMD\w*|annotate_\w*|TopK|PadToStatic|SliceToDynamic|\w*Barrier\w*|"
    r"__cub\$.*|MoveTo\w*|xla\.\w*|Host\w*"
)


def _opaque(running: Iterable[Executed]) -> tuple[tuple[str, float], ...]:
    counts: dict[str, Fraction] = {}
    for each in running:
        call = each.instruction
        target = call.attribute(r'custom_call_target="([^"]*)"')
        unknown = target is not None and not _HARMLESS.fullmatch(target)
        if target is not None and unknown and product_flops(each.computation, call) is None:
            counts[target] = counts.get(target, Fraction(0)) + each.times
    return tuple((target, plain(times)) for target, times in sorted(counts.items()))


def _unread_loops(running: tuple[Executed, ...]) -> int:
    inexact = {each.computation.name for each in running if not each.exact}
    bodies = (
        each.instruction.called("body") for each in running if each.instruction.opcode == "while"
    )
    return sum(body in inexact for body in bodies)


def _words(facts: CompiledFacts) -> str:
    own = facts.output_bytes - facts.alias_bytes
    sizes = {"arguments": facts.argument_bytes, "temporaries": facts.temp_bytes, "outputs": own}
    return ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in sizes.items())
