"""What every process says of itself, known to all of them at the same step.

Signals, full disks and slow hosts are seen by one process; what follows must be done by all, at one step, or they wait
for each other for ever. Each process puts a few numbers on its devices, and one small gather behind the step, which
nobody waits for, brings them to all. With one process nothing is gathered.
"""

import time
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from jaxscale.training.health.hosts import host_names
from jaxscale.training.health.pace import Pace
from jaxscale.training.health.preemption import StopRequest

# Seconds between gathers where steps are shorter: a stop is late by this at most, and fast steps hardly pay.
_PERIOD = 0.5
_MOST_STEPS = 1000


@dataclass(frozen=True)
class Said:
    """What the processes said behind a step.

    asked: processes that were asked to stop. own_seconds: of each process, per step, not waiting for others.
    step_seconds: of a whole step. hosts: by process. paces: see `Pace.medians`.
    """

    asked: tuple[int, ...]
    own_seconds: tuple[float, ...]
    step_seconds: float
    hosts: tuple[str, ...]
    paces: tuple[float, ...] = ()


class Alone:
    """The agreement of a run of one process: its own request."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self.said: Said | None = None

    @property
    def stop(self) -> bool:
        return self._request.asked

    def after_step(self, done: int, own_seconds: float, behind: jax.Array) -> None:
        """Nobody to tell."""

    def learn(self) -> None:
        """Nobody to hear."""


class Together:
    """The agreement of several processes. All call `after_step` and `learn` at the same steps."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._hosts = host_names()
        self._gather = _Gather()
        self._pace = Pace()
        self._own_seconds = 0.0
        self._sent: jax.Array | None = None
        self._every, self._due = 1, 0
        self._since, self._since_step = time.monotonic(), 0
        self._by_notice = False
        self.said: Said | None = None

    @property
    def stop(self) -> bool:
        """The same in every process between two calls of `learn`."""
        return self._by_notice or (self.said is not None and bool(self.said.asked))

    def after_step(self, done: int, own_seconds: float, behind: jax.Array) -> None:
        """Say what this process has to say behind step `done`.

        behind: a result of the step, so that the gather cannot overtake it on one process and not on another.
        """
        self._by_notice = self._by_notice or _noticed(done)
        self._own_seconds += own_seconds
        if done < self._due:
            return
        now, steps = time.monotonic(), max(done - self._since_step, 1)
        taken, own = (now - self._since) / steps, self._own_seconds / steps
        self._since, self._since_step, self._due = now, done, done + self._every
        self._own_seconds = 0.0
        pace = self._pace.look(behind)
        self._sent = self._gather([float(self._request.asked), own, taken, pace], behind)

    def learn(self) -> None:
        """Take in what was said last; waits for no more than the step that it was said behind."""
        if self._sent is None:
            return
        asked, own, taken, paces = self._gather.by_process(self._sent)
        self._sent = None
        self._pace.learn(paces.tolist())
        self.said = Said(
            tuple(np.flatnonzero(asked).tolist()),
            tuple(own.tolist()),
            float(np.median(taken)),
            self._hosts,
            self._pace.medians(),
        )
        # Of numbers that all have alike, so that all gather at the same steps.
        self._every = int(np.clip(_PERIOD / max(float(taken.max()), 1e-9), 1, _MOST_STEPS))


Agreement = Alone | Together


def make_agreement(request: StopRequest) -> Agreement:
    """Collective where there are several processes: all of them make it."""
    return Alone(request) if jax.process_count() == 1 else Together(request)


def _noticed(done: int) -> bool:
    """Whether JAX's preemption service has agreed on this step.

    It hears of what reaches a process without us: a notice that came before our handler, and those of platforms that
    have a channel of their own.
    """
    enabled = jax.config.values["jax_enable_preemption_service"]
    return bool(enabled) and bool(multihost_utils.reached_preemption_sync_point(done))


class _Gather:
    """A few numbers of each process to all processes, over the devices."""

    def __init__(self) -> None:
        devices = jax.devices()
        mesh = Mesh(np.array(devices), ("device",))
        self._by_device = NamedSharding(mesh, PartitionSpec("device"))
        # One device stands for its process.
        owners = [device.process_index for device in devices]
        self._first = [owners.index(process) for process in range(jax.process_count())]
        self._jitted = jax.jit(
            lambda rows, _behind: rows,
            out_shardings=NamedSharding(mesh, PartitionSpec()),
            keep_unused=True,
        )

    def __call__(self, numbers: list[float], behind: jax.Array) -> jax.Array:
        mine = np.tile(np.array(numbers, np.float32), (jax.local_device_count(), 1))
        rows = jax.make_array_from_process_local_data(self._by_device, mine)
        gathered: jax.Array = self._jitted(rows, behind)
        return gathered

    def by_process(self, gathered: jax.Array) -> Float[np.ndarray, "numbers processes"]:
        return np.asarray(jax.device_get(gathered))[self._first].T
