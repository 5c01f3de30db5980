"""Compile train steps for machines that are not there, and keep what the compiler made of them.

    python scripts/bench/planner_compiled/run.py [PART OF A NAME ...] [--store FILE] [--again]

Prints a line of JSON a case and merges it into FILE (docs/benchmarks/planner/compiled.json). Cases that are there
already are left out, unless --again. TPU cases need `pip install 'jaxscale[aot]'`. One compile at a time: 8B takes a
minute or two.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from cases import ROOT, Case, cases

from jaxscale.errors import UserError
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.models.traced_flops import traced_flops
from jaxscale.parallel.topology import abstract_devices, prepare_process
from jaxscale.planner.costs.lockstep.stages import tick_shares
from jaxscale.planner.hlo.branches import TickShares
from jaxscale.planner.hlo.collectives import by_axes
from jaxscale.planner.model.source import groups_of
from jaxscale.planner.search.proposal import to_layout
from jaxscale.planner.verification.compiled import CompiledFacts, argument_parts, compile_facts
from jaxscale.planner.verification.refusal import DoesNotFit
from jaxscale.training.lowering import abstract_job

STORE = ROOT / "docs/benchmarks/planner/compiled.json"
_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="parts of the names of the cases to run (default: all)"
    )
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--again", action="store_true", help="compile what is stored already, too")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    prepare_process()
    stored = _stored(options.store)
    for case in cases():
        wanted = not options.names or any(part in case.name for part in options.names)
        if wanted and (options.again or case.name not in stored):
            _run(case, stored, options.store)


def _run(case: Case, stored: dict[str, Any], store: Path) -> None:
    try:
        found = measure(case)
    except UserError as error:
        print(f"{case.name}: {error}", file=sys.stderr, flush=True)
        return
    print(json.dumps({"case": case.name, **found}), flush=True)
    stored[case.name] = found
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(stored, indent=1) + "\n")


def _stored(store: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    return found


def measure(case: Case) -> dict[str, Any]:
    """What the compiler says of a case, and what is known of it without the compiler."""
    cluster = cluster_by_name(case.cluster)
    job = abstract_job(case.config, case.plan, abstract_devices(cluster))
    started = time.monotonic()
    layers = job.placement.stages.num_layers if job.placement.stages else 0
    shares = tick_shares(to_layout(case.plan), layers, groups_of(case.config.model))
    result = _compiled(case, job.lower, shares)
    return {
        "cluster": case.cluster,
        "model": case.model,
        "plan": case.plan.model_dump(exclude_defaults=True),
        "global_batch": case.rows,
        "sequence_length": case.sequence,
        "argument_parts": argument_parts(job.arguments()),
        "traced_dot_flops": _traced(case),
        **result,
        "seconds": round(time.monotonic() - started, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": _versions(),
    }


def _compiled(case: Case, lower: Any, shares: TickShares | None) -> dict[str, Any]:
    try:
        facts = compile_facts(lower, case.plan.mesh_shape, shares=shares)
    except DoesNotFit as refusal:
        return {
            "does_not_fit": {
                "needed_bytes": refusal.needed,
                "available_bytes": refusal.available,
                "temporaries_alone": refusal.is_partial,
                "text": str(refusal),
            }
        }
    return {"facts": facts_as_json(facts)}


def facts_as_json(facts: CompiledFacts) -> dict[str, Any]:
    """Collectives summed by kind and axes."""
    plain = asdict(facts) | {"opaque": dict(facts.opaque)}
    plain["collectives"] = [
        {
            "kind": each.kind,
            "axes": list(each.axes),
            "group": each.group,
            "count": each.count,
            "bytes": each.num_bytes,
            "wire_bytes": round(each.wire_bytes),
        }
        for each in by_axes(facts.collectives)
    ]
    return plain


def _traced(case: Case) -> float:
    """FLOPs a device: those of the products in the trace of the step on a single device, over the devices."""
    plan = case.plan.model_copy(update=dict.fromkeys(case.plan.mesh_shape, 1))
    job = abstract_job(case.config, plan, jax.devices("cpu")[:1])
    with jax.set_mesh(job.placement.mesh):
        return traced_flops(job.step, job.state, job.batch) / case.plan.num_devices


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
