"""`jaxscale launch`: starts a run as several processes, here or elsewhere, and keeps it going."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxscale.cli import launch_batch
from jaxscale.cli import launch_options as options

if TYPE_CHECKING:
    from jaxscale.launch.members import Member
    from jaxscale.launch.remote import Step
    from jaxscale.launch.restarts import Policy
    from jaxscale.launch.run import Progress
    from jaxscale.launch.supervise import Limits

_HERE = "~/jaxscale-run"
_TPU_SETUP = (
    "{ test -d .venv || python3 -m venv .venv; } && "
    ".venv/bin/pip install --quiet --constraint requirements/runtime.txt '.[tpu]'"
)

app = typer.Typer(
    help="Start a run as several processes: here, over ssh, on TPU VMs, Slurm or Kubernetes.",
    no_args_is_help=True,
)
app.command("slurm")(launch_batch.slurm)
app.command("k8s")(launch_batch.k8s)


@app.command("local")
def local(
    config: options.Config,
    overrides: options.Overrides = None,
    num_processes: Annotated[
        int | None, typer.Option("-n", "--num-processes", help="default: one per GPU, else 1")
    ] = None,
    devices_per_process: Annotated[
        int | None, typer.Option(help="CPU devices of each process (on GPU: leave out)")
    ] = None,
    run_dir: options.RunDir = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="where process 0 listens (default: a free one)"),
    ] = None,
    join_timeout: options.JoinTimeout = None,
    max_restarts: options.MaxRestarts = 10,
    crash_loop: options.CrashLoop = 3,
    grace: options.Grace = 120,
    peer_grace: options.PeerGrace = 10,
    dry_run: options.DryRun = False,
) -> None:
    """Processes on this machine. Logs are in RUN/logs; the same command resumes.

    Status 0: trained; 2: a mistake of yours; 75: stopped with a checkpoint saved; 1: given up, with the reason.
    """
    from jaxscale.cli.run_place import check_local
    from jaxscale.config.loading import load_config
    from jaxscale.launch.local import choose, free_port, local_members, usable_gpus
    from jaxscale.launch.restarts import Policy
    from jaxscale.launch.run import progress_of
    from jaxscale.launch.supervise import Limits
    from jaxscale.launch.tpu_metadata import has_tpu
    from jaxscale.launch.train_command import TrainCommand

    settings = load_config(config, overrides or [])
    directory = run_dir or Path("runs") / settings.name
    check_local(directory)
    chosen = choose(
        num_processes,
        devices_per_process,
        gpus=usable_gpus(os.environ),
        tpu=has_tpu(),
        environment=os.environ,
    )
    program = (sys.executable, "-m", "jaxscale")
    train = TrainCommand(program, str(config), overrides or [], str(directory), join_timeout)
    make = local_members(
        chosen,
        train,
        directory / "logs",
        port=free_port if port is None else lambda: port,
        grace=grace,
    )
    _run(
        make,
        lambda: progress_of(directory),
        Policy(max_restarts, crash_loop),
        Limits(grace, peer_grace),
        dry_run=dry_run,
    )


@app.command("ssh")
def ssh(
    config: options.Config,
    hosts: Annotated[Path, typer.Option(help="machines, one a line: [user@]host [slots=N]")],
    overrides: options.Overrides = None,
    directory: options.Directory = _HERE,
    python: options.Python = ".venv/bin/python",
    ship: options.Ship = False,
    setup: options.Setup = None,
    env: options.Environment = None,
    option: Annotated[
        list[str] | None, typer.Option("--ssh-option", help="for ssh's -o; repeat it")
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0 (default: the first host, 8476)")
    ] = None,
    run_dir: options.RunDir = None,
    join_timeout: options.JoinTimeout = None,
    max_restarts: options.MaxRestarts = 10,
    crash_loop: options.CrashLoop = 3,
    grace: options.Grace = 120,
    peer_grace: options.PeerGrace = 10,
    dry_run: options.DryRun = False,
) -> None:
    """A process on each machine of a file, over ssh. CONFIG and the run directory are paths there, on a shared disk.

    Logs are gathered here, in runs/NAME/logs. Ctrl-C ends all of it; a broken connection ends its process.
    """
    from jaxscale.launch.hosts_file import read_hosts
    from jaxscale.launch.remote import Remote, parse_environment
    from jaxscale.launch.restarts import Policy
    from jaxscale.launch.ssh import Ssh, shipping, ssh_members
    from jaxscale.launch.supervise import Limits
    from jaxscale.launch.train_command import TrainCommand
    from jaxscale.launch.world import DEFAULT_PORT, address

    machines = read_hosts(hosts)
    where = coordinator or f"{machines[0].address}:{DEFAULT_PORT}"
    address(where, "--coordinator")
    remote = Remote(directory, python, parse_environment(env or []), grace)
    run = Ssh(machines, remote, where, option or [])
    name = _name(config, overrides or [])
    logs, archive = Path("runs") / name / "logs", _archive(name)
    train = TrainCommand(
        (python, "-m", "jaxscale"),
        str(config),
        overrides or [],
        _there(run_dir, name),
        join_timeout,
    )
    _prepare(
        shipping(run, archive if ship else None, setup), archive if ship else None, dry_run=dry_run
    )
    _run(
        ssh_members(run, train, logs),
        _progress_in(logs),
        Policy(max_restarts, crash_loop),
        Limits(grace, peer_grace),
        dry_run=dry_run,
    )


@app.command("tpu-vm")
def tpu_vm(
    name: Annotated[str, typer.Argument(help="the TPU's name")],
    config: options.Config,
    zone: Annotated[str, typer.Option(help="for example us-east5-a")],
    overrides: options.Overrides = None,
    project: Annotated[str | None, typer.Option(help="default: gcloud's own")] = None,
    create: Annotated[bool, typer.Option("--create", help="make the TPU first")] = False,
    accelerator: Annotated[
        str | None, typer.Option(help="as gcloud names it: v5p-128, v5litepod-16")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="make one that may be taken away")] = False,
    runtime: Annotated[str | None, typer.Option(help="software version (default: by chip)")] = None,
    directory: options.Directory = _HERE,
    python: options.Python = ".venv/bin/python",
    ship: Annotated[
        bool, typer.Option(help="bring this project's code to --directory first")
    ] = True,
    setup: Annotated[
        str, typer.Option(help="a command of the shell there that prepares --directory")
    ] = _TPU_SETUP,
    env: options.Environment = None,
    run_dir: options.RunDir = None,
    join_timeout: options.JoinTimeout = None,
    max_restarts: options.MaxRestarts = 10,
    crash_loop: options.CrashLoop = 3,
    grace: options.Grace = 120,
    peer_grace: options.PeerGrace = 10,
    dry_run: options.DryRun = False,
) -> None:
    """All workers of a Cloud TPU VM, through gcloud: code and environment are brought there, logs gathered here.

    CONFIG is a path in this project; the run directory one on a disk that all workers share. The TPU goes on costing
    money when the run has ended: the last line says how to delete it.
    """
    from jaxscale.launch import tpu_vm as tpu
    from jaxscale.launch.remote import Remote, parse_environment
    from jaxscale.launch.restarts import Policy
    from jaxscale.launch.supervise import Limits
    from jaxscale.launch.train_command import TrainCommand

    remote = Remote(directory, python, parse_environment(env or []), grace)
    vm = tpu.TpuVm(name, zone, remote, project, accelerator, runtime, spot)
    tpu.check(vm, create=create)
    run_name = _name(config, overrides or [])
    logs, archive = Path("runs") / run_name / "logs", _archive(run_name)
    train = TrainCommand(
        (python, "-m", "jaxscale"),
        str(config),
        overrides or [],
        _there(run_dir, run_name),
        join_timeout,
    )
    packed = archive if ship else None
    steps = [
        *([tpu.create(vm)] if create else []),
        *tpu.shipping(vm, packed, setup if ship else None),
    ]
    known = create or dry_run
    workers = tpu.num_workers_said(vm) if known else tpu.ask_num_workers(vm)
    _prepare(steps, packed, dry_run=dry_run)
    _run(
        tpu.tpu_members(vm, train, logs, workers),
        _progress_in(logs),
        Policy(max_restarts, crash_loop),
        Limits(grace, peer_grace),
        dry_run=dry_run,
        last_word=f"the TPU goes on costing money; {tpu.delete_command(vm)} ends it",
    )


def _name(config: Path, overrides: Sequence[str]) -> str:
    """The run's name; a configuration that has a mistake ends here, before anything is started."""
    from jaxscale.config.loading import load_config

    return load_config(config, overrides).name


def _there(run_dir: Path | None, name: str) -> str:
    from jaxscale.cli.run_place import check_local

    place = run_dir or Path("runs") / name
    check_local(place)
    return str(place)


def _archive(name: str) -> Path:
    from jaxscale.launch.tpu_vm import ARCHIVE

    return Path("runs") / name / ARCHIVE


def _prepare(steps: "Sequence[Step]", archive: Path | None, *, dry_run: bool) -> None:
    """Packs what is brought there, and runs the steps."""
    from jaxscale.launch.remote import StepFailed, pack, run_steps

    if dry_run:
        for step in steps:
            typer.echo(step.command())
        return
    if archive is not None:
        pack(Path(), archive)
    try:
        run_steps(steps, typer.echo)
    except StepFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _progress_in(logs: Path) -> "Progress":
    from jaxscale.launch.run import progress_of_log

    return lambda: progress_of_log(logs / "process-0.log")


def _run(
    make: "Callable[[int], Sequence[Member]]",
    progress: "Progress",
    policy: "Policy",
    limits: "Limits",
    *,
    dry_run: bool,
    last_word: str = "",
) -> None:
    """Runs the members to the end, and ends with their status; or says what would be run."""
    from jaxscale.launch.members import described
    from jaxscale.launch.remote import check_program
    from jaxscale.launch.run import keep_running

    members = make(1)
    if dry_run:
        typer.echo(described(members))
        return
    check_program(members[0].argv[0])
    width = max(len(member.label) for member in members)
    status = keep_running(make, progress, policy=policy, limits=limits, label_width=width)
    if last_word:
        typer.echo(last_word)
    raise typer.Exit(status)
