"""Python, JAX and its parts: they are released together and refuse each other otherwise."""

import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from jaxscale.telemetry.doctor.finding import Finding, Options

_CHECK = "versions"
_OLDEST_PYTHON = (3, 11)
# Plugins that are released with jaxlib, under its version.
_CUDA = re.compile(r"jax-cuda(\d+)-p(lugin|jrt)")

# PCI numbers of TPUs v3 to TPU7x, which JAX looks for as well.
_GOOGLE = "0x1ae0"
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def check_versions(_options: Options) -> list[Finding]:
    """Python, and every installed part of JAX against the others."""
    installed = {_canonical(one.metadata["Name"]): one.version for one in metadata.distributions()}
    return [
        python_finding(sys.version_info[:2]),
        *jax_findings(installed),
        *accelerator_findings(installed, has_gpu=has_gpu(), has_tpu=has_tpu()),
        *missing_findings(installed),
    ]


def python_finding(version: tuple[int, int]) -> Finding:
    shown, oldest = (".".join(map(str, one)) for one in (version, _OLDEST_PYTHON))
    if version < _OLDEST_PYTHON:
        return Finding(_CHECK, "bad", f"Python {shown}", f"install Python {oldest} or newer")
    return Finding(_CHECK, "good", f"Python {shown}")


def jax_findings(installed: Mapping[str, str]) -> list[Finding]:
    """installed: version by canonical name."""
    jax, jaxlib = installed.get("jax"), installed.get("jaxlib")
    if jax is None or jaxlib is None:
        missing = "jax" if jax is None else "jaxlib"
        return [Finding(_CHECK, "bad", f"{missing} is not installed", "pip install 'jax>=0.10.2'")]
    plugins = {name: found for name, found in installed.items() if _CUDA.fullmatch(name)}
    findings = [_jaxlib_finding(jax, jaxlib)]
    findings += [
        Finding(
            _CHECK,
            "bad",
            f"{name} {found} does not fit jaxlib {jaxlib}",
            f"pip install '{name}=={jaxlib}'",
        )
        for name, found in sorted(plugins.items())
        if found != jaxlib
    ]
    generations = sorted({match[1] for name in plugins if (match := _CUDA.fullmatch(name))})
    if len(generations) > 1:
        findings.append(
            Finding(
                _CHECK,
                "bad",
                f"JAX plugins for CUDA {' and '.join(generations)} are both installed",
                f"pip uninstall jax-cuda{generations[0]}-plugin jax-cuda{generations[0]}-pjrt",
            )
        )
    return findings


def _jaxlib_finding(jax: str, jaxlib: str) -> Finding:
    if jax.split(".")[:3] != jaxlib.split(".")[:3]:
        words = f"jax {jax} with jaxlib {jaxlib}: they are made for each other in pairs"
        return Finding(_CHECK, "warn", words, f"pip install 'jaxlib=={jax}'")
    return Finding(_CHECK, "good", f"jax {jax}, jaxlib {jaxlib}")


def accelerator_findings(
    installed: Mapping[str, str], *, has_gpu: bool, has_tpu: bool
) -> list[Finding]:
    """Hardware without what lets JAX use it."""
    findings = []
    if has_gpu and not any(_CUDA.fullmatch(name) for name in installed):
        words = "this machine has an NVIDIA GPU, but JAX has no plugin for it and will compute on the CPU"
        findings.append(Finding(_CHECK, "bad", words, "pip install 'jaxscale[cuda]'"))
    if has_tpu and "libtpu" not in installed:
        words = (
            "this machine has a TPU, but libtpu is not installed and JAX will compute on the CPU"
        )
        findings.append(Finding(_CHECK, "bad", words, "pip install 'jaxscale[tpu]'"))
    return findings


def missing_findings(installed: Mapping[str, str]) -> list[Finding]:
    """What jaxscale needs and is not there; nothing where jaxscale runs from a folder that was not installed."""
    if "jaxscale" not in installed:
        return []
    required = [one for one in metadata.requires("jaxscale") or [] if "extra ==" not in one]
    names = [_canonical(re.split(r"[^\w.-]", one, maxsplit=1)[0]) for one in required]
    missing = [name for name in names if name not in installed]
    if not missing:
        return []
    listed = " ".join(missing)
    return [Finding(_CHECK, "bad", f"not installed: {listed}", f"pip install {listed}")]


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded."""
    return any(
        map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/nvidiactl"))
    )


def has_tpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a TPU is on the PCI bus: Google's network cards have its vendor too, and other numbers."""
    return any(
        file.read_text().strip() == _GOOGLE and _number(file) in _TPUS
        for file in devices.glob("*/vendor")
    )


def _number(vendor: Path) -> str:
    device = vendor.with_name("device")
    return device.read_text().strip() if device.is_file() else ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
