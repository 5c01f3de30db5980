"""`jaxscale launch slurm` and `jaxscale launch k8s`: what a queue takes, written and handed over."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli import launch_options as options


def slurm(
    config: options.Config,
    overrides: options.Overrides = None,
    nodes: Annotated[int, typer.Option(help="machines")] = 1,
    tasks_per_node: Annotated[
        int | None, typer.Option(help="processes a node (default: one per GPU, else 1)")
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs a node")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="cores of a process")] = None,
    time: Annotated[str | None, typer.Option(help="limit: minutes, H:MM:SS or D-HH:MM:SS")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="a further option without dashes: constraint=h100; repeat it"),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(help="a line of shell before the run: module load cuda; repeat it"),
    ] = None,
    env: options.Environment = None,
    directory: Annotated[
        Path | None, typer.Option(help="where the job runs (default: here); on a shared disk")
    ] = None,
    program: Annotated[str, typer.Option(help="what starts jaxscale there")] = "jaxscale",
    run_dir: options.RunDir = None,
    join_timeout: options.JoinTimeout = None,
    max_restarts: options.MaxRestarts = 10,
    grace: Annotated[
        int, typer.Option(min=1, help="seconds before the time limit to save in")
    ] = 120,
    dry_run: options.DryRun = False,
) -> None:
    """A job of Slurm, which starts itself again when its time is up, when its nodes are wanted, and when it fails.

    The script is kept as RUN/launch.sbatch; --dry-run prints it.
    """
    from jaxscale.cli.run_place import check_local
    from jaxscale.config.loading import load_config
    from jaxscale.launch.remote import parse_environment
    from jaxscale.launch.slurm import SlurmJob, sbatch_script
    from jaxscale.launch.train_command import TrainCommand

    settings = load_config(config, overrides or [])
    home = (directory or Path()).absolute()
    run = run_dir or Path("runs") / settings.name
    check_local(run)
    train = TrainCommand((program,), str(config), overrides or [], str(run), join_timeout)
    job = SlurmJob(
        settings.name, nodes, tasks_per_node or gpus_per_node or 1, train, str(home), str(home / run / "logs"),
        gpus_per_node, cpus_per_task, time, partition, account, sbatch or [], setup or [],
        parse_environment(env or []), grace, max_restarts, settings.checkpoint.directory,
    )  # fmt: skip
    script = sbatch_script(job)
    if dry_run:
        typer.echo(script, nl=False)
        return
    (home / run / "logs").mkdir(parents=True, exist_ok=True)
    path = home / run / "launch.sbatch"
    path.write_text(script, encoding="utf-8")
    _hand_over(["sbatch", str(path)])
    typer.echo(f"log: {home / run}/logs/slurm-JOB.log; queue: squeue --me; stop: scancel JOB")


def k8s(
    config: options.Config,
    image: Annotated[str, typer.Option(help="a container image that has jaxscale (docker/)")],
    on: Annotated[
        str, typer.Option(help="what it runs on: v5p:4x4x8, v5e:16x16*4, h100:8x4, cpu:8")
    ],
    overrides: options.Overrides = None,
    run_dir: Annotated[
        str | None,
        typer.Option(help="where the run lives, on a volume (default: first volume/NAME)"),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(
            help="pvc:CLAIM:/PATH, gcs:BUCKET:/PATH, secret:..., configmap:...; repeat it"
        ),
    ] = None,
    secret: Annotated[list[str] | None, typer.Option(help="VARIABLE=SECRET:KEY; repeat it")] = None,
    env: options.Environment = None,
    name: Annotated[str | None, typer.Option(help="of the JobSet (default: the run's)")] = None,
    namespace: Annotated[str, typer.Option(help="Kubernetes')")] = "default",
    queue: Annotated[str | None, typer.Option(help="local queue of Kueue")] = None,
    priority_class: Annotated[str | None, typer.Option(help="Kubernetes'")] = None,
    service_account: Annotated[str | None, typer.Option(help="Kubernetes'")] = None,
    node_selector: Annotated[
        list[str] | None, typer.Option(help="LABEL=VALUE that nodes must have; repeat it")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="GKE's spot nodes")] = False,
    join_timeout: options.JoinTimeout = None,
    max_restarts: options.MaxRestarts = 10,
    grace: Annotated[int, typer.Option(min=1, help="seconds that pods have to save in")] = 120,
    port: options.Port = 8476,
    dry_run: options.DryRun = False,
) -> None:
    """A JobSet of Kubernetes, with its configuration. Preemptions restart it; so do failures, up to a limit.

    --dry-run prints the manifest. Paths in CONFIG are those of the container. Needs JobSet 0.11 or newer.
    """
    from jaxscale.config.loading import load_config
    from jaxscale.config.text import to_yaml
    from jaxscale.launch.k8s import KubernetesJob, manifest
    from jaxscale.launch.k8s_flags import labels, secrets
    from jaxscale.launch.k8s_nodes import nodes_of
    from jaxscale.launch.k8s_volumes import check_run_dir, default_run_dir, parse_volume
    from jaxscale.launch.remote import parse_environment

    settings = load_config(config, overrides or [])
    volumes = [parse_volume(one) for one in volume or []]
    run = run_dir or default_run_dir(volumes, settings.name)
    check_run_dir(run, volumes)
    waits = () if join_timeout is None else ("--join-timeout", f"{join_timeout:g}")
    job = KubernetesJob(
        name or settings.name, image, nodes_of(on, spot=spot), to_yaml(settings), ("--run-dir", run, *waits),
        namespace, parse_environment(env or []), secrets(secret or []), volumes, queue, priority_class,
        service_account, labels(node_selector or []), grace, max_restarts, port,
    )  # fmt: skip
    text = manifest(job)
    if dry_run:
        typer.echo(text, nl=False)
        return
    _hand_over(["kubectl", "apply", "-f", "-"], text)
    typer.echo(
        f"watch: kubectl -n {namespace} logs -f --prefix -l jobset.sigs.k8s.io/jobset-name={job.name}; "
        f"stop: kubectl -n {namespace} delete jobset {job.name}"
    )


def _hand_over(words: Sequence[str], text: str | None = None) -> None:
    """Runs a queue's own command; its failure is its message and status 1."""
    from jaxscale.launch.remote import check_program

    check_program(words[0])
    done = subprocess.run(words, input=text, text=True, check=False)
    if done.returncode:
        typer.echo(
            f"error: {words[0]} ended with status {done.returncode}; nothing was started", err=True
        )
        raise typer.Exit(1)
