"""The devices that JAX finds, and what they answer."""

import shutil
import subprocess
from collections import Counter

from jaxscale.telemetry.doctor.finding import Finding, Options
from jaxscale.telemetry.doctor.versions import has_gpu, has_tpu
from jaxscale.telemetry.format import bytes_text

_CHECK = "devices"
_QUERY = "index,memory.used,memory.total,ecc.errors.uncorrected.volatile.total"
_BUSY_MEBIBYTES = 1024


def check_devices(_options: Options) -> list[Finding]:
    """Finds them and has each of them compute something."""
    findings = _driver_findings()
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        words = f"JAX finds no device: {str(error).splitlines()[0]}"
        return [
            *findings,
            Finding(_CHECK, "bad", words, "see the findings above; JAX_PLATFORMS=cpu does without"),
        ]
    platform = devices[0].platform
    kinds = Counter(device.device_kind for device in devices)
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    findings.append(Finding(_CHECK, "good", f"{counts}{_memory(devices[0])}"))
    if platform == "cpu" and (has_gpu() or has_tpu()):
        words = "JAX computes on the CPU, although there is an accelerator"
        fix = (
            "see versions and environment; `python -c 'import jax; jax.devices(\"gpu\")'` says why"
        )
        findings.append(Finding(_CHECK, "bad", words, fix))
    wrong = [
        str(device)
        for device in devices
        if float(jnp.sum(jax.device_put(jnp.ones((256, 256)), device) @ jnp.ones((256, 256))))
        != 256**3
    ]
    if wrong:
        fix = "take the device out of service: its memory or its arithmetic is damaged"
        findings.append(Finding(_CHECK, "bad", f"wrong product of ones on {', '.join(wrong)}", fix))
    else:
        findings.append(Finding(_CHECK, "good", "each multiplies matrices"))
    return findings


def check_links(_options: Options) -> list[Finding]:
    """Measures collectives between the attached devices against their data sheets."""
    from jaxscale.errors import UserError
    from jaxscale.parallel.attached import attached_cluster
    from jaxscale.parallel.link_benchmark import measure_links

    try:
        cluster = attached_cluster()
    except UserError as error:
        return [
            Finding(
                "links", "warn", str(error), "describe the cluster in a YAML file for the planner"
            )
        ]
    if not cluster.dims:
        return [Finding("links", "good", "one device: nothing to measure")]
    sheets = {dim.name: dim.bandwidth for dim in cluster.dims}
    findings = []
    for speed in measure_links(cluster):
        words = (
            f"{speed.dim} ({speed.size} devices): all-gather {bytes_text(speed.gather)}/s, "
            f"all-reduce {bytes_text(speed.reduce)}/s, latency {speed.latency * 1e6:.0f} us"
        )
        slow = cluster.kind != "cpu" and speed.gather < 0.5 * sheets[speed.dim]
        fix = f"the data sheet says {bytes_text(sheets[speed.dim])}/s: look at topology and NCCL variables"
        findings.append(Finding("links", "warn" if slow else "good", words, fix if slow else ""))
    return findings


def _memory(device: object) -> str:
    stats = device.memory_stats() if hasattr(device, "memory_stats") else None
    return f", {bytes_text(stats['bytes_limit'])} each" if stats and "bytes_limit" in stats else ""


def _driver_findings() -> list[Finding]:
    """What NVIDIA's driver says: memory in use by others, and errors."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = f"nvidia-smi fails: {(done.stdout + done.stderr).strip()[:200]}"
        return [Finding(_CHECK, "bad", words, "load or repair the NVIDIA driver")]
    return [one for line in done.stdout.splitlines() if line for one in gpu_findings(line)]


def gpu_findings(line: str) -> list[Finding]:
    """Of a line of nvidia-smi: index, MiB in use, MiB in all, errors that were not corrected (or [N/A])."""
    index, used, total, errors = (part.strip() for part in line.split(","))
    findings = []
    if used.isdecimal() and int(used) > _BUSY_MEBIBYTES:
        words = f"GPU {index}: {used} of {total} MiB are in use by somebody else"
        findings.append(Finding(_CHECK, "warn", words, "end the processes that nvidia-smi shows"))
    if errors.isdecimal() and int(errors) > 0:
        words = f"GPU {index}: {errors} memory errors that were not corrected since it was reset"
        findings.append(
            Finding(_CHECK, "bad", words, "drain the machine and have the GPU reset or replaced")
        )
    return findings
