"""`report.html`: a finished (or dead) run on one page that opens anywhere, without network or libraries."""

from pathlib import Path

from jaxscale.telemetry.report.page import render
from jaxscale.telemetry.report.run import load_run


def write_report(run_dir: Path) -> Path:
    """Write `report.html` from whatever is in the run directory, and return its path.

    Reads `metrics.jsonl`, `config.yaml`, `plan.yaml`, `prediction.json`, `environment.json`, `samples/STEP.txt`
    and `summary.json`, any of which may be missing: a run that died early has a report too.
    """
    path = run_dir / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(render(load_run(run_dir)), encoding="utf-8")
    temporary.replace(path)
    return path
