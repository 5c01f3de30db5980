"""The processes of a run become one JAX runtime, or end with a message that names who is in the way.

A process by itself passes through at once: nothing here imports JAX before there are others.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.errors import UserError
from jaxscale.launch.agree import agree, flatten, versions
from jaxscale.launch.door import meet
from jaxscale.launch.line import PeerLost
from jaxscale.launch.meeting import Meeting, in_turns
from jaxscale.launch.world import World

JOIN_TIMEOUT = 300.0
# A process whose machine stops dead is noticed by JAX's service within this many seconds.
HEARTBEAT_SECONDS = 60
# Directories of NFS are looked at anew after 30 s by default (acdirmin).
_DISK_SECONDS = 35.0
# Between signs that data are being prepared: who waits for them reads them, who prepares too lets them pile up.
_SIGN_SECONDS = 60.0
# At the end, processes wait so long for each other: process 0 still writes the report.
SHUTDOWN_SECONDS = 120


@dataclass(frozen=True)
class Together:
    """The processes of a run that have met."""

    meeting: Meeting

    def prepare_data(self, config: RunConfig, alive: Callable[[], None]) -> None:
        """Text becomes tokens once on a shared disk, once a machine elsewhere, and never twice at a time.

        alive: called as it goes on, here or in the process that is waited for.
        """
        from jaxscale.data.corpus import open_corpus
        from jaxscale.data.prepare import Progress

        period = min(_SIGN_SECONDS, (config.training.start_seconds or _SIGN_SECONDS) / 10)

        def report(_progress: Progress) -> None:
            alive()
            self.meeting.sign(period)

        self.meeting.alive = alive
        in_turns(self.meeting, "data", lambda: _drop(open_corpus(config.data, report)))

    def agree_on_plan(self, plan: Plan) -> None:
        """The last that they compare; from then on they watch each other. Raises UserError for different plans."""
        agree(
            self.meeting,
            "plan",
            flatten(plan.model_dump(mode="json")),
            "They see different devices or different run directories: the directory must be shared by all machines; or "
            "name the plan's axes in the configuration",
        )
        self.meeting.keep_watch()


def _drop(_value: object) -> None:
    """For what is called for its effect."""


@contextmanager
def joined(
    world: World, config: RunConfig, directory: Path, *, timeout: float = JOIN_TIMEOUT
) -> Iterator[Together]:
    """All processes of `world`, which run the same versions on the same configuration, as one JAX runtime.

    directory: of the run, by whose name processes know that they belong together, and which they must share.
    Raises UserError for differences, and PeerLost for a process that does not come within `timeout` seconds or is gone.
    """
    with meet(world, run=str(directory), timeout=timeout) as meeting:
        agree(
            meeting,
            "versions",
            versions(),
            "Install the same environment everywhere (requirements/), then start all of them again",
        )
        agree(
            meeting,
            "configuration",
            flatten(config.model_dump(mode="json")),
            "Start every process with the same file and the same overrides",
        )
        check_shared(meeting, directory)
        _start_jax(world, meeting, timeout)
        _check_devices(meeting)
        yield Together(meeting)


def check_shared(meeting: Meeting, directory: Path, *, patience: float = _DISK_SECONDS) -> None:
    """Raises UserError where a machine has another directory of the same name: checkpoints would be torn apart.

    patience: seconds that a disk may take to show a new file everywhere.
    """
    mark = directory / f".meeting-{uuid.uuid4().hex}"
    leads = meeting.process_id == 0
    if leads:
        _touch(mark)
    try:
        name = str(meeting.exchange("run directory", mark.name)[0])
        mine = _appears(directory / name, patience)
        seen = meeting.exchange("run directory", mine, patient=True)
    finally:
        if leads:
            mark.unlink(missing_ok=True)
    if not all(seen):
        blind = [meeting.name(process) for process, sees in enumerate(seen) if not sees]
        raise UserError(
            f"the run directory {directory} of process 0 is not that of {', '.join(blind[:8])}; give one on a disk "
            "that all machines share (--run-dir)"
        )


def _touch(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(
            f"cannot write in the run directory {path.parent}: {error.strerror}"
        ) from None


def _appears(path: Path, patience: float) -> bool:
    """A network disk may show a new file a little later."""
    until = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(patience / 50)
    return True


def _start_jax(world: World, meeting: Meeting, timeout: float) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    host = f"[{world.coordinator}]" if ":" in world.coordinator else world.coordinator
    local = world.coordinator in {"127.0.0.1", "localhost", "::1"}
    try:
        jax.distributed.initialize(
            coordinator_address=f"{host}:{world.port}",
            num_processes=world.num_processes,
            process_id=world.process_id,
            local_device_ids=world.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=round(timeout),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            coordinator_bind_address=f"{host}:{world.port}" if local else None,
        )
    except RuntimeError as error:
        raise PeerLost(
            f"{meeting.name(world.process_id)}: JAX's processes did not meet: {error}"
        ) from error


def _check_devices(meeting: Meeting) -> None:
    """Raises UserError where a process has other devices than the rest: a broken GPU, a fallback to the CPU."""
    import jax

    kinds: Mapping[str, object] = {
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
        "device kind": jax.local_devices()[0].device_kind,
    }
    agree(
        meeting,
        "devices",
        kinds,
        "A device may be broken, or its driver missing (jaxscale doctor on that machine says more)",
    )
    if jax.process_index() != meeting.process_id:
        raise UserError(
            f"{meeting.name(meeting.process_id)} is worker {jax.process_index()} of its TPU slice; give the machines "
            "in the order of their workers"
        )
    if jax.process_count() != len(meeting.hosts):
        raise UserError(
            f"JAX counts {jax.process_count()} processes, {len(meeting.hosts)} have met; unset the variables of other "
            "starters (TPU_*, MEGASCALE_*) or start all workers"
        )
