"""ZeRO stages 1 and 2 in time: gradients are scattered, and the parameters that come of them are gathered."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from planner_cases import DENSE, ROUTED, line, predicted, seconds
from planner_truth.software import (
    ALEPH_ALPHA,
    DEEPSEEK,
    DEEPSPEED,
    GOPHER,
    LLAMA3,
    MEGATRON,
    MEGATRON_CORE,
    MEGATRON_DEEPSPEED,
    NEMO,
)

from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.hardware.cluster import Cluster
from jaxscale.planner.model.parameters import num_parameters, parameter_groups
from jaxscale.planner.vocabulary.jaxscale_stack import jaxscale_stack
from jaxscale.planner.vocabulary.layout import Layout, ZeroStage
from jaxscale.planner.vocabulary.prediction import Prediction

STAGES: tuple[ZeroStage, ...] = (1, 2)
# As wide as Megatron's: 16-bit parameters, gradients summed in fp32. Both collectives may hide wholly.
WIDTHS = {"param_bytes": 2, "reduce_bytes": 4}
HIDES = {"data": 1.0, "parameters": 1.0}
COMPUTE = (
    "attention projections", "attention", "mlp", "experts", "shared experts", "mlp of dense layers",
    "elementwise and norms", "head and loss",
)  # fmt: skip


def stack(cluster: str | Cluster, layout: Layout, **changes: Any) -> Prediction:
    """In a stack whose stages do not wait for each other, whose compiler leaves nothing out, and whose gradients have
    all one width."""
    return predicted(cluster, layout, lockstep=False, prunes=False, looks_up=False, **changes)


def components(found: Prediction) -> set[str]:
    return {one.component for one in found.time}


def slow(factor: float, cluster: str = "h100:1x8") -> Cluster:
    """The same cluster with a network that many times as slow."""
    place = parse_cluster(cluster)
    dims = (replace(dim, bandwidth=dim.bandwidth / factor) for dim in place.dims)
    return replace(place, dims=tuple(dims))


def total(found: Prediction, names: Sequence[str]) -> float:
    return math.fsum(one.value for one in found.time if one.component in names)


@pytest.mark.parametrize("zero", STAGES)
def test_a_scatter_and_a_gather_each_in_its_own_width(zero: ZeroStage) -> None:
    """Seven eighths of four and of two bytes a parameter, at 50 GB/s a GPU, and seven hops each."""
    cluster = parse_cluster("h100:1x8")
    found = stack(cluster, Layout(data=8, zero=zero), **WIDTHS)
    elements = num_parameters(parameter_groups(DENSE))
    hops = 7 * cluster.dims[-1].latency
    for name, width in (("gradients over data", 4), ("parameters over data", 2)):
        moved = 7 / 8 * width * elements
        assert line(found, name).moved_bytes == pytest.approx(moved)
        assert seconds(found, name) == pytest.approx(moved / (0.85 * 50e9) + hops)


@pytest.mark.parametrize("zero", STAGES)
def test_it_moves_what_a_sum_moves(zero: ZeroStage) -> None:
    """Rajbhandari et al. 2020, section 7.2.1: as many bytes as data parallelism without it, where widths are equal."""
    summed, split = (
        stack("h100:8x2", Layout(data=16, zero=stage), param_bytes=2, reduce_bytes=2)
        for stage in (0, zero)
    )
    both = ("gradients over data", "parameters over data")
    moved = sum(line(split, name).moved_bytes for name in both)
    assert moved == pytest.approx(line(summed, both[0]).moved_bytes)
    assert sum(seconds(split, name) for name in both) == pytest.approx(seconds(summed, both[0]))


def test_without_zero_nothing_is_gathered() -> None:
    """Gradients are one sum, and what a stack says of parameters changes nothing."""
    layout = Layout(data=2, context=2, expert=4)
    told, untold = (
        stack(
            slow(16, "h100:4x4"),
            layout,
            shape=ROUTED,
            expert_shares=False,
            context_shares=False,
            overlap=overlap,
        )
        for overlap in (HIDES, {"data": 1.0})
    )
    assert told == untold
    assert not any(one.startswith("parameters over") for one in components(told))


def forward_bounds(layout: Layout) -> tuple[float, float]:
    """What the first forward pass takes at least and at most: what rematerialization adds is all forward passes of the
    layers; of the head, one product of three, and of its logits one passage through memory of two."""
    plain, full = (stack("h100:1x8", replace(layout, remat=remat)) for remat in ("none", "full"))
    layers = (total(full, COMPUTE) - total(plain, COMPUTE)) / layout.microbatches
    head = total(plain, ("head and loss",)) / layout.microbatches
    return layers + head / 3, layers + head / 2


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_gather_hides_behind_the_first_forward_pass_and_no_more(microbatches: int) -> None:
    layout = Layout(data=8, microbatches=microbatches, zero=1)
    least, most = forward_bounds(layout)
    for factor in (1, 4, 64, 1024):
        found = line(stack(slow(factor), layout, overlap=HIDES, **WIDTHS), "parameters over data")
        whole = found.value + found.hidden_seconds
        assert min(whole, least) * 0.999 <= found.hidden_seconds <= min(whole, most) * 1.001


def test_axes_share_the_pass_that_they_hide_behind() -> None:
    """What hides over `data` is gone for `context` and `expert`, of gradients as of parameters."""
    layout = Layout(data=2, context=2, expert=2, microbatches=2, zero=1)
    repeated = {"expert_shares": False, "context_shares": False}
    found = stack(slow(1024), layout, shape=ROUTED, overlap=HIDES, **repeated, **WIDTHS)
    passes = total(found, COMPUTE) / layout.microbatches
    head = total(found, ("head and loss",)) / layout.microbatches
    behind = {
        kind: sum(
            line(found, f"{kind} over {axis}").hidden_seconds
            for axis in ("data", "context", "expert")
        )
        for kind in ("gradients", "parameters")
    }
    # One forward and one backward pass are full; the latter takes twice as long or longer, but for logits in memory.
    assert sum(behind.values()) == pytest.approx(passes)
    assert 0 < behind["parameters"] <= (passes - head) / 3 + head / 2


@pytest.mark.parametrize("axis", ["data", "context", "expert"])
@pytest.mark.parametrize("kind", ["gradients", "parameters"])
def test_as_much_hides_as_the_stack_says_whatever_axis_repeats(kind: str, axis: str) -> None:
    key = {"gradients": "data", "parameters": "parameters"}[kind]
    whole, half = (
        line(
            stack(
                "h100:8",
                Layout(**{"data": 1, axis: 8}, zero=1),
                shape=ROUTED,
                expert_shares=False,
                context_shares=False,
                overlap={key: share},
            ),
            f"{kind} over {axis}",
        )
        for share in (0.0, 0.5)
    )
    assert whole.hidden_seconds == 0
    assert half.hidden_seconds == pytest.approx(whole.value / 2)


@pytest.mark.parametrize("zero", [0, *STAGES])
def test_a_faster_network_is_never_slower(zero: ZeroStage) -> None:
    layouts = (
        Layout(data=8, zero=zero),
        Layout(data=4, context=2, zero=zero, microbatches=2),
        Layout(data=2, expert=4, zero=zero, microbatches=4, remat="full"),
        Layout(data=4, pipeline=2, zero=zero, microbatches=4, schedule="1f1b"),
    )
    for layout, nodes in product(layouts, (0, 2)):
        changes = {
            "shape": ROUTED,
            "expert_shares": False,
            "context_shares": False,
            "expert_nodes": nodes,
            "overlap": {**HIDES, "tokens": 0.5, "keys": 1.0},
        }
        steps = [
            stack(slow(factor), layout, **changes, **WIDTHS).step_seconds
            for factor in (256, 64, 16, 4, 2, 1, 0.25)
        ]
        assert steps == sorted(steps, reverse=True), (layout, nodes)


def test_which_software_gathers_beside_the_next_forward_pass() -> None:
    """Megatron-Core does, and Llama 3's FSDP fetches ahead; where nothing says so, parameters are waited for."""
    hides = (MEGATRON_CORE, NEMO, LLAMA3)
    waits = (MEGATRON, MEGATRON_DEEPSPEED, DEEPSPEED, ALEPH_ALPHA, DEEPSEEK, GOPHER)
    assert {one.stack.overlap.get("parameters", 0.0) for one in hides} == {1.0}
    assert {one.stack.overlap.get("parameters", 0.0) for one in waits} == {0.0}
    kinds = ("tpu", "gpu", "cpu")
    assert {jaxscale_stack(kind).overlap.get("parameters", 0.0) for kind in kinds} == {0.0}
