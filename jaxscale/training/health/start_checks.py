"""What can be known to go wrong hours later: checked before the first step."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxscale.checkpoint.layout import listed_steps
from jaxscale.checkpoint.locate import checkpoints_of
from jaxscale.errors import UserError
from jaxscale.models.description import ParamSpec
from jaxscale.telemetry.format import bytes_text
from jaxscale.training.health.hosts import host_names, named
from jaxscale.training.health.self_test import check_devices
from jaxscale.training.job import Job
from jaxscale.training.state import TrainState

# Clocks of a cluster agree to some ms; logs, leases and certificates of one that is this far off cannot be trusted.
_CLOCK_SECONDS = 2.0


def check_start(job: Job, say: Callable[[str], None]) -> None:
    """Every process calls it. Raises UserError for a disk without room for a checkpoint and, where the run's
    configuration asks for the test, for a device that computes wrongly; `say` hears of what may do harm later."""
    for warning in (*check_room(job), *clock_warnings()):
        say(f"warning: {warning}")
    if job.config.training.self_test:
        check_devices()


def checkpoint_bytes(specs: TrainState) -> int:
    """Bytes of the arrays of a checkpoint."""
    leaves = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))
    return int(sum(spec.size * spec.dtype.itemsize for spec in leaves))


def own_checkpoint_bytes(specs: TrainState) -> float:
    """Of them, what one process writes."""
    return checkpoint_bytes(specs) / int(jax.process_count())


def check_room(job: Job) -> list[str]:
    """Raises UserError where one checkpoint does not fit on the disk; warns where all that are kept do not."""
    place = checkpoints_of(job.directory, job.config.checkpoint.directory)
    if not isinstance(place, Path):  # Object storage has room.
        return []
    size, kept = checkpoint_bytes(job.specs), job.config.checkpoint.keep_last
    free = shutil.disk_usage(_existing(place)).free
    there = len(listed_steps(place))
    if free < size:
        raise UserError(
            f"a checkpoint of this run takes {bytes_text(size)}, and {bytes_text(free)} are free in {job.directory}: "
            "free some space, or give another place with --run-dir"
        )
    # A new one is whole before the oldest goes.
    needed = max(kept + 1 - there, 1) * size
    if free >= needed:
        return []
    message = (
        f"{bytes_text(free)} are free in {job.directory}; the {kept} checkpoints that are kept and the one being "
        f"written take {bytes_text(needed)} more: free some space, or lower checkpoint.keep_last"
    )
    return [message]


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.absolute().parents) if path.exists())


def clock_warnings() -> list[str]:
    """Processes whose clocks differ from those of the others; all of them call it together."""
    if jax.process_count() == 1:
        return []
    hosts = host_names()  # Also brings the processes here at one time.
    seconds, rest = divmod(time.time(), 1.0)
    # Device arrays have 32 bits.
    mine = np.array([int(seconds), int(rest * 1e6)], np.int32)
    gathered = np.asarray(multihost_utils.process_allgather(mine)).astype(np.int64)
    return clock_messages((gathered[:, 0] + gathered[:, 1] / 1e6).tolist(), hosts)


def clock_messages(clocks: Sequence[float], hosts: tuple[str, ...]) -> list[str]:
    """Of the clocks (Unix seconds at one moment) that are off."""
    usual = float(np.median(clocks))
    return [
        f"the clock of {named(process, hosts)} is {abs(clock - usual):.1f} s "
        f"{'ahead of' if clock > usual else 'behind'} those of the other hosts: start its time service (chrony, "
        "systemd-timesyncd)"
        for process, clock in enumerate(clocks)
        if abs(clock - usual) > _CLOCK_SECONDS
    ]
