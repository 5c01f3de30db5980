"""Processes on this machine: one per GPU, or any number that share its CPU."""

import importlib.metadata
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxscale.errors import UserError
from jaxscale.launch import world as names
from jaxscale.launch.members import Member
from jaxscale.launch.train_command import TrainCommand
from jaxscale.training.health.preemption import GRACE_VARIABLE

LOOPBACK = "127.0.0.1"
_MOST_PROCESSES = 1024


@dataclass(frozen=True)
class Local:
    """devices: CPU devices that each process pretends to have; None: a GPU for each, or all chips of a TPU for one."""

    num_processes: int
    devices: int | None
    on: Literal["cpu", "gpu", "tpu"] = "cpu"


def choose(
    num_processes: int | None,
    devices: int | None,
    *,
    gpus: int,
    tpu: bool,
    environment: Mapping[str, str],
) -> Local:
    """What the flags ask for on this machine. Raises UserError for more processes than GPUs, and for none at all.

    gpus: those that JAX may use here. tpu: whether there is one.
    """
    if devices is not None and devices < 1:
        raise UserError(f"--devices-per-process {devices}: at least 1")
    on_cpu = devices is not None or environment.get("JAX_PLATFORMS") == "cpu"
    if tpu and not on_cpu:
        return _on_tpu(num_processes)
    on_gpu = gpus > 0 and not on_cpu
    count = num_processes if num_processes is not None else gpus if on_gpu else 1
    if not 1 <= count <= _MOST_PROCESSES:
        raise UserError(f"-n {count}: 1 to {_MOST_PROCESSES} processes")
    if on_gpu and count > gpus:
        raise UserError(
            f"-n {count} with {gpus} GPU{'s' if gpus > 1 else ''}: one process per GPU at most; "
            "--devices-per-process runs on the CPU"
        )
    return Local(count, None, "gpu") if on_gpu else Local(count, devices or 1)


def _on_tpu(num_processes: int | None) -> Local:
    if num_processes not in {None, 1}:
        raise UserError(
            f"-n {num_processes} on a TPU: one process has all its chips; --devices-per-process runs on the CPU"
        )
    return Local(1, None, "tpu")


def usable_gpus(environment: Mapping[str, str]) -> int:
    """NVIDIA GPUs of this machine that JAX has a plugin for."""
    if not any("cuda" in plugin.name for plugin in _plugins()):
        return 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(bool(one.strip()) for one in visible.split(","))
    return sum(path.name[6:].isdecimal() for path in Path("/dev").glob("nvidia*"))


def _plugins() -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group="jax_plugins")


def local_members(
    local: Local, train: TrainCommand, logs: Path, *, port: Callable[[], int], grace: float
) -> Callable[[int], list[Member]]:
    """The members of each attempt. port: says where process 0 listens. grace: seconds that they have to save in."""

    def members(_attempt: int) -> list[Member]:
        common = {names.COORDINATOR: f"{LOOPBACK}:{port()}", GRACE_VARIABLE: f"{grace:g}"}
        return [
            _member(local, train, logs, common, process) for process in range(local.num_processes)
        ]

    return members


def _member(
    local: Local, train: TrainCommand, logs: Path, common: Mapping[str, str], process: int
) -> Member:
    environment = {
        **common,
        names.NUM_PROCESSES: str(local.num_processes),
        names.PROCESS_ID: str(process),
        "PYTHONUNBUFFERED": "1",
    }
    if local.on == "gpu":
        environment[names.LOCAL_DEVICES] = str(process)
    if local.on == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(local.devices)}
    return Member(str(process), train.argv, logs / f"process-{process}.log", environment)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
