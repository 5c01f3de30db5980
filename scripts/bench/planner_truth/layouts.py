"""Batch, microbatches, schedule, remat and ZeRO stage of a case: every way to fill in what it leaves open."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

from jaxscale.planner.model.workload import Workload
from jaxscale.planner.vocabulary.layout import Layout, Remat, Schedule, ZeroStage
from planner_truth.cases import Case
from planner_truth.remats import remat_of
from planner_truth.software import Software

# Tried where a case names none: what each family of software has. An open microbatch or batch is a power of two of rows
# a device.
OPEN_REMATS: Mapping[str, tuple[Remat, ...]] = {
    "jax": ("full", "offload", "minimal", "projections", "dots", "none"),
    "torch": ("full", "alternate", "none"),
    "megatron": ("full", "attention", "none"),
}
OPEN_ROWS = (1, 2, 4, 8, 16, 32)
MAX_VIRTUAL_STAGES = 8


def shards(mesh: dict[str, int]) -> int:
    return prod(mesh.get(axis, 1) for axis in ("data", "fsdp", "expert"))


def batches(
    case: Case, mesh: dict[str, int], sequence: int
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Sequences of a step."""
    given, devices = case.given, prod(mesh.values())
    scales = (
        (("global_batch_seqs", "global_batch", "batch_seqs", "batch"), 1.0),
        (("global_batch_tokens", "batch_tokens"), 1 / sequence),
        (("per_chip_batch_seqs", "per_device_batch_seqs", "per_device_batch"), devices),
        (
            ("per_chip_batch_tokens", "per_device_batch_tokens", "tokens_per_chip"),
            devices / sequence,
        ),
        (("local_batch", "local_batch_seqs"), shards(mesh)),
    )
    named = [given[name] * scale for names, scale in scales for name in names if name in given]
    if named:
        yield max(1, round(named[0])), ()
    elif "microbatch" in given:
        passes = given.get("microbatches") or given.get("grad_accum") or mesh.get("pipeline", 1)
        yield int(given["microbatch"]) * int(passes) * shards(mesh), ()
    else:
        for rows in OPEN_ROWS:
            yield rows * shards(mesh), ("batch",)


def layouts(
    case: Case, software: Software, workload: Workload, mesh: dict[str, int]
) -> Iterator[tuple[Layout, tuple[str, ...]]]:
    schedules = list(_schedules(case, software, mesh, workload.shape.layers))
    microbatches = list(_microbatches(case, software, mesh, workload.global_batch))
    remat = _remat(case, software)
    opened = [
        name
        for name, is_open in (
            ("microbatch", len(microbatches) > 1),
            ("remat", remat is None),
            ("virtual stages", len(schedules) > 1),
        )
        if is_open
    ]
    remats = OPEN_REMATS[software.words] if remat is None else (remat,)
    for kept, count, (schedule, virtual) in product(remats, microbatches, schedules):
        layout = replace(
            _on(mesh),
            microbatches=count,
            schedule=schedule,
            virtual_stages=virtual,
            remat=kept,
            zero=_zero(case, software),
        )
        yield layout, tuple(opened)


def _on(mesh: Mapping[str, int]) -> Layout:
    return Layout(
        data=mesh.get("data", 1),
        fsdp=mesh.get("fsdp", 1),
        expert=mesh.get("expert", 1),
        context=mesh.get("context", 1),
        tensor=mesh.get("tensor", 1),
        pipeline=mesh.get("pipeline", 1),
    )


def _remat(case: Case, software: Software) -> Remat | None:
    """A `policy` (tables that compare policies) that names none recomputes nothing."""
    if case.given.get("act_offload"):
        return "offload"
    words = str(case.given.get("remat") or case.given.get("policy") or "")
    found = remat_of(words, software.words)
    if found is None and not words:
        return software.remat
    return "none" if found is None and "policy" in case.given else found


def _microbatches(
    case: Case, software: Software, mesh: dict[str, int], batch: int
) -> Iterator[int]:
    """Passes of a step: given, or every power of two of rows in each where the software would choose."""
    given, rows = case.given, batch / shards(mesh)
    pipelined = mesh.get("pipeline", 1) > 1
    if given.get("microbatches") or given.get("grad_accum"):
        yield int(given.get("microbatches") or given["grad_accum"])
    elif "microbatch" in given:
        yield max(1, round(rows / given["microbatch"]))
    elif software.whole_batch and not pipelined:
        yield 1
    else:
        whole = {round(rows / each) for each in OPEN_ROWS if rows >= each and rows % each == 0}
        # Rows that nothing divides were padded or rounded in print.
        yield from sorted(whole or {max(1, round(rows / each)) for each in OPEN_ROWS})


def _schedules(
    case: Case, software: Software, mesh: dict[str, int], layers: int
) -> Iterator[tuple[Schedule, int]]:
    """Schedules and virtual stages."""
    stages = mesh.get("pipeline", 1)
    if stages == 1:
        yield "none", 1
        return
    words = case.given.get("schedule")
    name = schedule_name(str(words or software.schedule))
    virtual = case.given.get("virtual_stages") or case.given.get("virtual")
    is_open = software.has_virtual and not words and not virtual
    if virtual and int(virtual) > 1:
        yield "interleaved", int(virtual)
    elif name != "interleaved" or virtual:
        yield name if name != "interleaved" else "1f1b", 1
    if not virtual and (is_open or name == "interleaved"):
        slots = layers
        if software.stack.partition == "slots" and layers % stages:
            slots += 2  # Each table in the place of a layer.
        whole = [v for v in range(2, MAX_VIRTUAL_STAGES + 1) if slots % (stages * v) == 0]
        for v in whole or [2]:
            yield "interleaved", v


def schedule_name(words: str) -> Schedule:
    lowered = words.lower()
    if "interleaved" in lowered and "non-interleaved" not in lowered:
        return "interleaved"
    if re.search(r"zb|zero.?bubble|dualpipe", lowered):
        return "zb-h1"
    return "gpipe" if "gpipe" in lowered and "1f1b" not in lowered else "1f1b"


def _zero(case: Case, software: Software) -> ZeroStage:
    stage: Any = case.given.get("zero", software.zero)
    mesh = case.given.get("mesh", {})
    if "ZeRO-1" in str(mesh):
        stage = 1
    return 2 if stage == 2 else 1 if stage in {1, 3} else 0
