"""Temporary memory and compile time of a pipelined train step by number of microbatches and schedule, as compiled.

    python scripts/bench/pipeline_memory.py [--on v5e:2x4] [--config FILE] [--stages 4] [--microbatches 4,8,16,32]
        [--layers 16] [--schedules gpipe,1f1b,interleaved,zb-h1] [--plan key=value ...] [--out FILE]

Nothing runs: the real step is compiled for pretended CPU devices or, with `pip install 'jaxscale[aot]'`, for a TPU.
Rows of a microbatch stay the same as their number grows. Bytes are of one device.
"""

import argparse
import itertools
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jaxlib

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.parallel.topology import abstract_devices, prepare_process
from jaxscale.training.lowering import abstract_job

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    options = _options()
    prepare_process()
    devices = abstract_devices(cluster_by_name(options.on))
    rows: list[dict[str, Any]] = []
    cases = itertools.product(
        options.schedules.split(","),
        options.layers.split(","),
        map(int, options.microbatches.split(",")),
    )
    for schedule, layers, microbatches in cases:
        plan = _plan(options, schedule, microbatches, len(devices))
        config = _config(options, plan, layers)
        rows.append(_measured(config, plan, devices))
        print(_line(rows[-1], rows), flush=True)
    if options.out:
        versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "on": options.on}
        date = datetime.now(UTC).date().isoformat()
        options.out.write_text(
            json.dumps({**versions, "date": date, "rows": rows}, indent=1) + "\n"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--on", default="cpu:4", help="cluster to compile for (default cpu:4)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/quickstart.yaml")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--microbatches", default="4,8,16,32")
    parser.add_argument("--layers", default="16", help="numbers of layers of the model")
    parser.add_argument("--schedules", default="gpipe,1f1b,interleaved,zb-h1")
    parser.add_argument(
        "--plan", nargs="*", default=[], help="more of the plan: tensor=2 remat=full"
    )
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the configuration")
    parser.add_argument("--rows", type=int, default=1, help="rows of a microbatch on a device")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    return parser.parse_args()


def _plan(options: argparse.Namespace, schedule: str, microbatches: int, devices: int) -> Plan:
    extra = dict(item.split("=") for item in options.plan)
    others = options.stages * int(extra.get("tensor", 1)) * int(extra.get("data", 1))
    chosen = {
        "pipeline": options.stages,
        "fsdp": devices // others,
        "schedule": schedule,
        "microbatches": microbatches,
        "virtual_stages": 2 if schedule == "interleaved" else 1,
    }
    return Plan.model_validate({**chosen, **extra})


def _config(options: argparse.Namespace, plan: Plan, layers: str) -> RunConfig:
    batch = options.rows * plan.batch_shards * plan.microbatches
    sets = [f"model.num_layers={layers}", *options.set, f"training.global_batch={batch}"]
    return load_config(options.config, sets)


def _measured(config: RunConfig, plan: Plan, devices: Any) -> dict[str, Any]:
    job = abstract_job(config, plan, devices)
    started = time.monotonic()
    lowered = job.lower()
    traced = time.monotonic()
    memory = lowered.compile().memory_analysis()
    return {
        "schedule": plan.schedule,
        "layers": config.model.num_layers,
        "microbatches": plan.microbatches,
        "plan": plan.model_dump(exclude_defaults=True),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "trace_seconds": round(traced - started, 2),
        "compile_seconds": round(time.monotonic() - traced, 2),
    }


def _line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    kind = row["schedule"], row["layers"]
    first = next(other for other in rows if (other["schedule"], other["layers"]) == kind)
    ratio = row["temporary_bytes"] / first["temporary_bytes"]
    return (
        f"{row['schedule']:12} {row['layers']} layers m={row['microbatches']:<3} "
        f"temporary {row['temporary_bytes']:>14,} B "
        f"({ratio:.3f} of m={first['microbatches']})  arguments {row['argument_bytes']:,} B  "
        f"traced in {row['trace_seconds']} s, compiled in {row['compile_seconds']} s"
    )


if __name__ == "__main__":
    main()
