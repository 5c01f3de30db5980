"""Environment variables that somebody once set for a reason, and that slow down or break what runs today."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxscale.telemetry.doctor.finding import Finding, Options, State
from jaxscale.telemetry.doctor.versions import has_gpu, has_tpu

_CHECK = "environment"
_ON = {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class Rule:
    """matters: for a value that is set. on: the machines that it concerns."""

    variable: str
    matters: Callable[[str], bool]
    state: State
    words: str
    fix: str = ""
    on: str = "any"


def _is_on(value: str) -> bool:
    return value.strip().lower() in _ON


def _is_off(value: str) -> bool:
    return value.strip().lower() in {"0", "false", "no", "off"}


def _is_small(value: str) -> bool:
    digits = value.replace(".", "", 1)
    return digits.isdecimal() and float(value) < 0.5


def _exists_not(value: str) -> bool:
    return bool(value) and not Path(value).exists()


def _keeps_away_accelerators(value: str) -> bool:
    return value.strip() == "cpu"


def _always(_value: str) -> bool:
    return True


_UNSET = "unset it"
RULES: Sequence[Rule] = (
    Rule(
        "NCCL_P2P_DISABLE",
        _is_on,
        "warn",
        "GPUs of a machine talk through host memory instead of NVLink",
        _UNSET,
        "gpu",
    ),
    Rule(
        "NCCL_IB_DISABLE",
        _is_on,
        "warn",
        "machines talk over TCP instead of InfiniBand",
        _UNSET,
        "gpu",
    ),
    Rule(
        "NCCL_SHM_DISABLE",
        _is_on,
        "warn",
        "processes of a machine talk through the network",
        _UNSET,
        "gpu",
    ),
    Rule(
        "NCCL_NET_GDR_LEVEL",
        _is_off,
        "warn",
        "the network card copies through host memory",
        _UNSET,
        "gpu",
    ),
    Rule(
        "NCCL_ALGO",
        _always,
        "warn",
        "NCCL may not choose its algorithm by size and topology",
        _UNSET,
        "gpu",
    ),
    Rule(
        "NCCL_PROTO",
        _always,
        "warn",
        "NCCL may not choose its protocol by size; some choices corrupt data on some machines",
        _UNSET,
        "gpu",
    ),
    Rule(
        "NCCL_DEBUG",
        lambda v: v.upper() in {"INFO", "TRACE"},
        "warn",
        "NCCL writes much to standard error",
        "set it to WARN",
        "gpu",
    ),
    Rule(
        "CUDA_LAUNCH_BLOCKING",
        _is_on,
        "warn",
        "every kernel waits for the one before",
        _UNSET,
        "gpu",
    ),
    Rule(
        "CUDA_VISIBLE_DEVICES",
        lambda v: v.strip() in {"", "-1"},
        "bad",
        "it hides every GPU",
        _UNSET,
        "gpu",
    ),
    Rule(
        "XLA_PYTHON_CLIENT_PREALLOCATE",
        _is_off,
        "warn",
        "memory is taken piece by piece: slower, and fragmented in the end",
        _UNSET,
        "gpu",
    ),
    Rule(
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        _is_small,
        "warn",
        "JAX may use less than half of a GPU's memory",
        "unset it, or set it to 0.9",
        "gpu",
    ),
    Rule(
        "XLA_PYTHON_CLIENT_ALLOCATOR",
        lambda v: v == "platform",
        "warn",
        "every allocation asks the driver: very slow",
        _UNSET,
        "gpu",
    ),
    Rule("TPU_LIBRARY_PATH", _exists_not, "bad", "there is no such libtpu", _UNSET, "tpu"),
    Rule(
        "TPU_MIN_LOG_LEVEL",
        lambda v: v == "0",
        "warn",
        "libtpu writes much to its logs",
        "set it to 2",
        "tpu",
    ),
    Rule("TPU_VISIBLE_CHIPS", lambda v: not v.strip(), "bad", "it hides every chip", _UNSET, "tpu"),
    Rule(
        "JAX_PLATFORMS",
        _keeps_away_accelerators,
        "bad",
        "JAX is told to leave the accelerator alone",
        _UNSET,
        "accelerator",
    ),
    Rule("JAX_DISABLE_JIT", _is_on, "bad", "nothing is compiled: hundreds of times slower", _UNSET),
    Rule("JAX_DEBUG_NANS", _is_on, "warn", "every result is fetched and looked at", _UNSET),
    Rule(
        "JAX_ENABLE_X64",
        _is_on,
        "warn",
        "numbers that are not told their type take twice the space",
        _UNSET,
    ),
    Rule(
        "JAX_ENABLE_COMPILATION_CACHE",
        _is_off,
        "warn",
        "every restart compiles everything again",
        _UNSET,
    ),
    Rule(
        "JAX_COMPILATION_CACHE_DIR",
        lambda v: not v,
        "warn",
        "every restart compiles everything again",
        _UNSET,
    ),
    Rule(
        "XLA_FLAGS",
        lambda v: "--xla_dump_to" in v,
        "warn",
        "every program that is compiled is written out",
        "take --xla_dump_to out",
    ),
    Rule(
        "XLA_FLAGS",
        lambda v: "optimization_level=0" in v,
        "warn",
        "programs are compiled quickly and run slowly",
        "take the flag out",
    ),
    Rule(
        "XLA_FLAGS",
        lambda v: "xla_force_host_platform_device_count" in v,
        "warn",
        "one CPU pretends to be several devices",
        "unset it",
        "accelerator",
    ),
    Rule(
        "PYTHONDONTWRITEBYTECODE",
        bool,
        "warn",
        "every process compiles every module anew (2 s of start-up)",
        _UNSET,
    ),
    Rule("PYTHONFAULTHANDLER", _is_off, "warn", "a crash leaves no stacks", _UNSET),
)


def check_environment(_options: Options) -> list[Finding]:
    return variable_findings(
        os.environ, has_gpu=has_gpu(), has_tpu=has_tpu(), interfaces=_interfaces()
    )


def variable_findings(
    environment: Mapping[str, str], *, has_gpu: bool, has_tpu: bool, interfaces: Sequence[str]
) -> list[Finding]:
    """What is set and hurts. interfaces: the network interfaces of this machine."""
    here = {"any"} | ({"gpu", "accelerator"} if has_gpu else set())
    here |= {"tpu", "accelerator"} if has_tpu else set()
    findings = [
        Finding(
            _CHECK,
            rule.state,
            f"{rule.variable}={environment[rule.variable]}: {rule.words}",
            rule.fix,
        )
        for rule in RULES
        if rule.on in here
        and rule.variable in environment
        and rule.matters(environment[rule.variable])
    ]
    findings += _interface_findings(environment, interfaces)
    findings += _proxy_findings(environment)
    return findings or [Finding(_CHECK, "good", "no variable that is known to hurt")]


def _interface_findings(environment: Mapping[str, str], interfaces: Sequence[str]) -> list[Finding]:
    """`eth,ib` are beginnings of names, `=eth0` a name, `^docker` what is left out."""
    value = environment.get("NCCL_SOCKET_IFNAME", "")
    if not value or value.startswith("^"):
        return []
    exact, names = value.startswith("="), value.removeprefix("=").split(",")
    found = [i for i in interfaces for n in names if (i == n if exact else i.startswith(n))]
    if found:
        return []
    words = (
        f"NCCL_SOCKET_IFNAME={value}: no interface here is called that ({', '.join(interfaces)})"
    )
    return [Finding(_CHECK, "bad", words, "name one of them, or unset it")]


def _proxy_findings(environment: Mapping[str, str]) -> list[Finding]:
    """gRPC, by which processes of a run find each other, obeys these."""
    proxy = next(
        (n for n in ("grpc_proxy", "https_proxy", "http_proxy") if environment.get(n)), None
    )
    if proxy is None or environment.get("no_proxy") or environment.get("no_grpc_proxy"):
        return []
    words = f"{proxy} is set and no_proxy is not: processes look for each other through the proxy"
    return [Finding(_CHECK, "warn", words, "add the machines of the run to no_proxy")]


def _interfaces() -> list[str]:
    folder = Path("/sys/class/net")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
