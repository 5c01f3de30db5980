"""`summary.json`: a run in a few numbers, for the report and for scripts."""

from typing import Any

from jaxscale.telemetry.mfu import Peak
from jaxscale.telemetry.process import seconds_since_process_start
from jaxscale.training.job import Job
from jaxscale.training.outputs import write_json


def write_summary(
    job: Job, *, done: int, peak: Peak, flops_per_token: float, first_step_seconds: float | None
) -> None:
    """Times are those of this process: `first_step_seconds` from its start to its first completed step."""
    finished = done >= job.config.training.steps
    values: dict[str, Any] = {
        "status": "finished" if finished else "stopped",
        "steps": done,
        "parameters": sum(spec.size for spec in job.model.description.values()),
        "devices": job.placement.mesh.size,
        "wall_seconds": seconds_since_process_start(),
        "first_step_seconds": first_step_seconds,
        "training_flops_per_token": flops_per_token,
        "peak_flops": peak.flops_per_second,
        "mfu_convention": peak.convention(),
    }
    write_json(job.directory / "summary.json", values)
