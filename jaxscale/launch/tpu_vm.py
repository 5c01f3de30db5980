"""A run on a Cloud TPU VM, all workers, through gcloud: made where asked for, given code and environment, run, watched.

Cloud TPU's own interface ends with v6e; newer chips are machines of GKE (`launch k8s`).
"""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from jaxscale.errors import UserError
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.hardware.cluster import Cluster
from jaxscale.launch.members import Member
from jaxscale.launch.remote import (
    Remote,
    Step,
    check_program,
    in_directory,
    make_directory,
    training_command,
)
from jaxscale.launch.train_command import TrainCommand

# cloud.google.com/tpu/docs/runtimes
_RUNTIMES = MappingProxyType({
    "v3": "tpu-ubuntu2204-base", "v4": "tpu-ubuntu2204-base", "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e",
})  # fmt: skip
# Chips of a machine: one machine of up to 8, or several of 4 (cloud.google.com/tpu/docs/v5e and v6e; 4 elsewhere).
_SINGLE_HOST = MappingProxyType({"v5e": 8, "v6e": 8})
_CHIPS_PER_WORKER = 4
ARCHIVE = "jaxscale-project.tar.gz"
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class TpuVm:
    """name, zone, project: of the TPU. accelerator: as `gcloud` names it; None for one that exists."""

    name: str
    zone: str
    remote: Remote
    project: str | None = None
    accelerator: str | None = None
    runtime: str | None = None
    spot: bool = False

    def gcloud(self, verb: str, *words: str) -> tuple[str, ...]:
        where = (
            "--zone",
            self.zone,
            *(() if self.project is None else ("--project", self.project)),
        )
        return ("gcloud", "compute", "tpus", "tpu-vm", verb, *words, *where, "--quiet")

    def ssh(self, worker: str, command: str) -> tuple[str, ...]:
        # One word with its value, so that a command that begins with a dash is no flag.
        return self.gcloud("ssh", self.name, f"--worker={worker}", f"--command={command}")


def check(vm: TpuVm, *, create: bool) -> None:
    """Raises UserError for names that Google would refuse, and chips that it does not have as TPU VMs."""
    if create and vm.accelerator is None:
        raise UserError("--create needs --accelerator, for example --accelerator v5p-128")
    if not _NAME.fullmatch(vm.name):
        raise UserError(
            f"{vm.name!r} cannot name a TPU: lower-case letters, digits and dashes, a letter first, 63 at most"
        )
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", vm.zone):
        raise UserError(f"--zone {vm.zone!r} is no zone; for example us-east5-a")
    if vm.accelerator is not None:
        _slice(vm.accelerator)


def create(vm: TpuVm) -> Step:
    """Makes the TPU."""
    assert vm.accelerator is not None
    family = _slice(vm.accelerator).family
    words = [
        vm.name,
        "--accelerator-type",
        vm.accelerator.replace("v5e-", "v5litepod-"),  # What gcloud calls it.
        "--version",
        vm.runtime or _RUNTIMES[family],
    ]
    return Step(vm.gcloud("create", *words, *(("--spot",) if vm.spot else ())))


def delete_command(vm: TpuVm) -> str:
    """What ends the bill."""
    return Step(vm.gcloud("delete", vm.name)).command()


def num_workers(accelerator: str) -> int:
    """Machines of a slice. Raises UserError for a name that is none, with the nearest."""
    cluster = _slice(accelerator)
    if cluster.num_chips <= _SINGLE_HOST.get(cluster.family, _CHIPS_PER_WORKER):
        return 1
    return cluster.num_chips // _CHIPS_PER_WORKER


def num_workers_said(vm: TpuVm) -> int:
    """Machines of the slice that `--accelerator` names: for a dry run, which asks Google nothing."""
    if vm.accelerator is None:
        raise UserError(
            "--dry-run asks Google nothing: say what the TPU is, for example --accelerator v5p-128"
        )
    return num_workers(vm.accelerator)


def ask_num_workers(vm: TpuVm) -> int:
    """Machines of a TPU that exists, as Google knows it. Raises UserError where it is not there, or not ready."""
    check_program("gcloud")
    words = vm.gcloud("describe", vm.name, "--format=json")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(
            f"gcloud does not find the TPU {vm.name} in {vm.zone}: {said[-1] if said else 'no reason given'}; "
            "--create makes it"
        )
    return _workers_in(vm, done.stdout)


def _workers_in(vm: TpuVm, description: str) -> int:
    try:
        node = json.loads(description)
        state, endpoints = node.get("state", ""), node.get("networkEndpoints", [])
    except (ValueError, AttributeError):
        raise UserError(f"gcloud described {vm.name} in words that are no JSON") from None
    if state != "READY" or not endpoints:
        raise UserError(
            f"the TPU {vm.name} is {state or 'in no state'}, not READY; a preempted one is deleted and made again: "
            f"{delete_command(vm)}, then --create"
        )
    return len(endpoints)


def shipping(vm: TpuVm, archive: Path | None, setup: str | None) -> list[Step]:
    """Bring the project to every worker at once, and set it up there."""
    directory, steps = vm.remote.directory, []
    if archive is not None:
        unpack = f"{make_directory(directory)} && tar -xzf ~/{ARCHIVE}"
        steps = [
            Step(vm.gcloud("scp", str(archive), f"{vm.name}:{ARCHIVE}", "--worker=all")),
            Step(vm.ssh("all", unpack)),
        ]
    if setup:
        steps.append(Step(vm.ssh("all", in_directory(directory, setup))))
    return steps


def tpu_members(
    vm: TpuVm, train: TrainCommand, logs: Path, workers: int
) -> Callable[[int], Sequence[Member]]:
    """A connection to each worker; the processes find each other by what the TPU's metadata say."""
    command = training_command(vm.remote, train, {})

    def members(_attempt: int) -> list[Member]:
        return [
            Member(f"worker {i}", vm.ssh(str(i), command), logs / f"process-{i}.log", remote=True)
            for i in range(workers)
        ]

    return members


def _slice(accelerator: str) -> Cluster:
    """The slice that an accelerator type names: v5p-128, v5litepod-16."""
    if not re.fullmatch(r"[a-z0-9]+-\d+", accelerator):
        raise UserError(
            f"--accelerator {accelerator!r}: write v5p-128 or v5litepod-16, as gcloud does"
        )
    cluster = cluster_by_name(accelerator)
    if cluster.kind != "tpu" or cluster.family not in _RUNTIMES:
        raise UserError(
            f"{accelerator} is not made as a TPU VM: Cloud TPU has {', '.join(_RUNTIMES)}; newer chips run on GKE "
            "(jaxscale launch k8s)"
        )
    return cluster
