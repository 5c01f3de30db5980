"""`jaxscale train` as one of several processes: who they are, how they meet, and what they must agree on."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from jaxscale.config.run import RunConfig
from jaxscale.errors import UserError
from jaxscale.launch import world as names
from jaxscale.launch.line import PeerLost
from jaxscale.launch.orphans import end_with_launcher
from jaxscale.launch.peers import leave_soon
from jaxscale.launch.rendezvous import JOIN_TIMEOUT, Together, joined
from jaxscale.launch.tpu_metadata import tpu_pod
from jaxscale.training.health.watchdog import Watchdog

if TYPE_CHECKING:
    from jaxscale.models.description import Blueprint
    from jaxscale.training.job import Chosen, PlanChooser

JOIN_TIMEOUT_VARIABLE = "JAXSCALE_JOIN_TIMEOUT"


@dataclass(frozen=True)
class Flags:
    """What the command line says of the processes; None: what started them says it."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    join_timeout: float | None = None

    def over(self, environment: names.Environment) -> dict[str, str]:
        """The environment, under what was said."""
        said = {
            names.COORDINATOR: self.coordinator,
            names.NUM_PROCESSES: self.num_processes,
            names.PROCESS_ID: self.process_id,
            JOIN_TIMEOUT_VARIABLE: self.join_timeout,
        }
        return {
            **environment,
            **{name: str(value) for name, value in said.items() if value is not None},
        }


@dataclass(frozen=True)
class Process:
    """A process among those of its run. together: None for a process by itself."""

    together: Together | None

    def say(self, message: str) -> None:
        """One process speaks for all."""
        if self.together is None or self.together.meeting.process_id == 0:
            typer.echo(message)

    def agreeing(self, choose: "PlanChooser") -> "PlanChooser":
        """`choose`, compared between the processes before anything is compiled."""
        together = self.together
        if together is None:
            return choose

        def agreed(config: RunConfig, model: "Blueprint") -> "Chosen":
            chosen = choose(config, model)
            together.agree_on_plan(chosen.plan)
            return chosen

        return agreed


@contextmanager
def process_of(
    config: RunConfig, directory: Path, flags: Flags, watchdog: Watchdog
) -> Iterator[Process]:
    """Meets the other processes, if there are any, and prepares the data with them; JAX must not have started yet.

    A peer that is missing or lost is one message and status 1: starting all processes again may help.
    """
    environment = flags.over(os.environ)
    end_with_launcher(environment)
    world = names.find_world(environment, tpu_pod=tpu_pod)
    if world is None:
        yield Process(None)
        return
    try:
        timeout = _timeout(environment)
        watchdog.among(world.process_id, world.num_processes)
        watchdog.starting(waiting=timeout)
        with ExitStack() as stack:
            stack.push(_hasten)
            together = stack.enter_context(joined(world, config, directory, timeout=timeout))
            watchdog.starting()
            together.prepare_data(config, watchdog.alive)
            yield Process(together)
    except PeerLost as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _hasten(
    kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
) -> None:
    """At its end Python would wait in JAX for the other processes, for minutes. For a mistake `cli.main` sees to it."""
    if kind is not None and issubclass(kind, Exception) and not issubclass(kind, UserError):
        leave_soon()


def _timeout(environment: names.Environment) -> float:
    text = environment.get(JOIN_TIMEOUT_VARIABLE, str(JOIN_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{JOIN_TIMEOUT_VARIABLE}={text!r}: write seconds, more than 0")
    return seconds
