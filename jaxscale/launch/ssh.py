"""A run over ssh: a connection for each process, which carries its output, its status, and signals to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxscale.launch import world as names
from jaxscale.launch.hosts_file import Host
from jaxscale.launch.members import Member
from jaxscale.launch.remote import Remote, Step, in_directory, make_directory, training_command
from jaxscale.launch.train_command import TrainCommand

# No questions; a machine that has gone is noticed after a minute.
_OPTIONS = ("BatchMode=yes", "ServerAliveInterval=15", "ServerAliveCountMax=4")


@dataclass(frozen=True)
class Ssh:
    """hosts: where processes run, process 0 on the first. coordinator: HOST:PORT at which all reach process 0."""

    hosts: Sequence[Host]
    remote: Remote
    coordinator: str
    options: Sequence[str] = ()

    def command(self, host: Host, command: str) -> tuple[str, ...]:
        options = [word for option in (*_OPTIONS, *self.options) for word in ("-o", option)]
        return ("ssh", *options, host.name, command)


def shipping(ssh: Ssh, archive: Path | None, setup: str | None) -> list[Step]:
    """Bring the project to every machine, and set it up there; either may be left out."""
    directory = ssh.remote.directory
    steps = []
    if archive is not None:
        unpack = f"{make_directory(directory)} && tar -xzf -"
        steps += [Step(ssh.command(host, unpack), archive) for host in ssh.hosts]
    if setup:
        steps += [Step(ssh.command(host, in_directory(directory, setup))) for host in ssh.hosts]
    return steps


def ssh_members(ssh: Ssh, train: TrainCommand, logs: Path) -> Callable[[int], list[Member]]:
    """The members of each attempt, in the order of the hosts."""
    places = [(host, slot) for host in ssh.hosts for slot in range(host.slots)]

    def members(_attempt: int) -> list[Member]:
        return [
            _member(ssh, train, logs, process, host, slot, [one for one, _ in places])
            for process, (host, slot) in enumerate(places)
        ]

    return members


def _member(
    ssh: Ssh,
    train: TrainCommand,
    logs: Path,
    process: int,
    host: Host,
    slot: int,
    all_hosts: list[Host],
) -> Member:
    added = {
        names.COORDINATOR: ssh.coordinator,
        names.NUM_PROCESSES: str(len(all_hosts)),
        names.PROCESS_ID: str(process),
        names.HOSTS: ",".join(one.address for one in all_hosts),
    }
    if host.slots > 1:
        added[names.LOCAL_DEVICES] = str(slot)
    label = host.address if host.slots == 1 else f"{host.address}/{slot}"
    argv = ssh.command(host, training_command(ssh.remote, train, added))
    return Member(label, argv, logs / f"process-{process}.log", remote=True)
