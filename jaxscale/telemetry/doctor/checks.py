"""All checks, each in a process of its own: none can hang or break the others.

`python -m jaxscale.telemetry.doctor.checks NAME OPTIONS` prints the findings of one as JSON.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from jaxscale.telemetry.doctor.finding import Finding, Options

_PACKAGE = "jaxscale.telemetry.doctor"


@dataclass(frozen=True)
class Check:
    """Where a check is, and the seconds that it may take."""

    name: str
    module: str
    function: str
    seconds: float = 20.0

    def run(self, options: Options) -> list[Finding]:
        function: Callable[[Options], list[Finding]] = getattr(
            import_module(f"{_PACKAGE}.{self.module}"), self.function
        )
        return function(options)


CHECKS = (
    Check("versions", "versions", "check_versions"),
    Check("devices", "devices", "check_devices", seconds=90.0),
    Check("environment", "variables", "check_environment"),
    Check("storage", "storage", "check_storage", seconds=30.0),
    Check("compile cache", "machine", "check_cache"),
    Check("clock", "machine", "check_clock"),
    Check("limits", "machine", "check_limits"),
    Check("network", "machine", "check_network", seconds=30.0),
)
LINKS = Check("links", "devices", "check_links", seconds=240.0)


def run_checks(checks: Sequence[Check], options: Options) -> list[Finding]:
    """The findings of all checks, run side by side; of one that takes too long or breaks, that it did."""
    started = time.monotonic()
    running = [(check, _start(check, options)) for check in checks]
    findings = [
        finding
        for check, process in running
        for finding in _outcome(check, process, started + check.seconds)
    ]
    order = [check.name for check in (*CHECKS, LINKS)]
    return sorted(findings, key=lambda finding: order.index(finding.check))


def _start(check: Check, options: Options) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", f"{_PACKAGE}.checks", check.name, json.dumps(asdict(options))]
    # JAX may find several devices of a machine by forking others: a group of its own can be ended as one.
    start = partial(subprocess.Popen, text=True, start_new_session=True)
    return start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(check))


def _environment(check: Check) -> dict[str, str]:
    """Ours, and this package found where it is now, wherever Python would look."""
    here = str(Path(__file__).parents[3])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if check.module == "devices":
        # A run may be using the GPU: take what is needed, and not most of its memory.
        found.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return found


def _outcome(check: Check, process: "subprocess.Popen[str]", deadline: float) -> list[Finding]:
    try:
        out, err = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        # One that waits for a dead disk cannot be killed, and is not waited for.
        os.killpg(process.pid, signal.SIGKILL)
        words = f"no answer within {check.seconds:.0f} s"
        return [
            Finding(
                check.name, "bad", words, _HANGS.get(check.name, "run it again on an idle machine")
            )
        ]
    if process.returncode:
        last = (err.strip().splitlines() or [f"status {process.returncode}"])[-1]
        fix = "a bug of ours, or a broken installation: report it with this line"
        return [Finding(check.name, "bad", f"the check itself failed: {last[:300]}", fix)]
    return [Finding(**one) for one in json.loads(out.splitlines()[-1])]


_HANGS = {
    "devices": "another process may hold the device: end it, or restart the machine",
    "storage": "the storage does not answer: look at its server and at the mount",
    "links": "devices do not reach each other: look at NCCL variables and the network",
}


def main(name: str, options: str) -> None:
    """Print one check's findings as the last line of standard output."""
    check = next(one for one in (*CHECKS, LINKS) if one.name == name)
    findings = check.run(Options(**json.loads(options)))
    sys.stdout.write("\n" + json.dumps([asdict(one) for one in findings]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
