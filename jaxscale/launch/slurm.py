"""A run on Slurm: one sbatch script, which starts the processes with srun, again where that helps."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxscale.errors import UserError
from jaxscale.launch.train_command import TrainCommand
from jaxscale.training.health.exits import PREEMPTED
from jaxscale.training.health.preemption import GRACE_VARIABLE

_TIME = re.compile(r"\d+(:\d{2}){0,2}|\d+-\d{1,2}(:\d{2}){0,2}")
_OPTION = re.compile(r"[a-z][a-z-]*(=.*)?")
# Seconds that processes have once the first of a step has ended, for whatever reason.
_WAIT = 60

_SCRIPT = """\
#!/bin/bash
{options}

# Written by `jaxscale launch slurm`. Submit it again, and the run goes on from its newest checkpoint.
set -u
cd {directory} || exit 2
run={run}
{setup}
newest() {{ {listing} 2>/dev/null | grep -x '[0-9][0-9]*' | sort -n | tail -n 1; }}

in_vain=0
while true; do
  before=$(newest)
  # All processes end within {wait} s of the first; `--signal` above tells them {grace} s before the time is up.
  srun --kill-on-bad-exit=0 --wait={wait} --label {command}
  status=$?
  case $status in
    0 | 2) exit $status ;;  # Trained; or a mistake, which is in the log.
    {preempted})  # Stopped with a checkpoint saved: the time is up, or the nodes are wanted.
      scontrol requeue "$SLURM_JOB_ID" && sleep 60
      exit {preempted} ;;
  esac
  if [ "$(newest)" = "$before" ]; then in_vain=$((in_vain + 1)); else in_vain=1; fi
  if [ "$in_vain" -gt {max_restarts} ]; then
    echo "launch: given up after {max_restarts} restarts without a newer checkpoint; the last status was $status" >&2
    exit 1
  fi
  delay=$((in_vain < 8 ? 2 ** in_vain : 300))
  echo "launch: status $status; restart $in_vain of {max_restarts} from step $(newest) in $delay s" >&2
  sleep "$delay"
done
"""


@dataclass(frozen=True)
class SlurmJob:
    """One job. tasks_per_node: processes a node; with GPUs as many as those, or one that has all of them.

    options: further #SBATCH options without their dashes (`constraint=h100`). setup: lines of shell before the run.
    grace: seconds before the time limit at which the run is told to save. logs: folder of the job's log.
    checkpoints: `checkpoint.directory` of the run's configuration.
    """

    name: str
    nodes: int
    tasks_per_node: int
    train: TrainCommand
    directory: str
    logs: str
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    options: Sequence[str] = ()
    setup: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    grace: int = 120
    max_restarts: int = 10
    checkpoints: str = "checkpoints"


def check(job: SlurmJob) -> None:
    """Raises UserError for what sbatch would refuse, or take for something else."""
    for flag, value in (("--nodes", job.nodes), ("--tasks-per-node", job.tasks_per_node)):
        if value < 1:
            raise UserError(f"{flag} {value}: at least 1")
    if job.time is not None and not _TIME.fullmatch(job.time):
        raise UserError(f"--time {job.time!r}: write minutes, H:MM:SS or D-HH:MM:SS")
    gpus = job.gpus_per_node
    if gpus is not None and (gpus < 1 or job.tasks_per_node not in {1, gpus}):
        raise UserError(
            f"{job.tasks_per_node} tasks a node with {gpus} GPUs: use --tasks-per-node {gpus} (a process per GPU) or 1"
        )
    for option in job.options:
        if not _OPTION.fullmatch(option):
            raise UserError(
                f"--sbatch {option!r}: write an option of sbatch without its dashes, as in constraint=h100"
            )


def sbatch_script(job: SlurmJob) -> str:
    """The whole script. Words of the run are quoted for the shell, options for sbatch. Raises UserError as `check`."""
    check(job)
    variables = {"PYTHONUNBUFFERED": "1", GRACE_VARIABLE: str(job.grace), **job.environment}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH --{option}" for option in _options(job)),
        directory=shlex.quote(job.directory),
        run=shlex.quote(job.train.run_dir),
        listing=_listing(job),
        setup="\n".join((*job.setup, *exports)),
        command=shlex.join(job.train.argv),
        wait=_WAIT,
        grace=job.grace,
        preempted=PREEMPTED,
        max_restarts=job.max_restarts,
    )


def _listing(job: SlurmJob) -> str:
    """A command that prints the steps of the checkpoints, which name their folders; those in a store jaxscale lists."""
    place = job.checkpoints.removeprefix("file://")
    if "://" in place:
        words = [*job.train.program, "checkpoint", "ls", place, "--json"]
        return f"""{shlex.join(words)} | sed -n 's/^ *"step": \\([0-9]*\\),*$/\\1/p'"""
    return (
        f"ls {shlex.quote(place)}" if place.startswith("/") else f'ls "$run"/{shlex.quote(place)}'
    )


def _options(job: SlurmJob) -> list[str]:
    """Options of sbatch; what is None is left out."""
    log = f"{job.logs.replace('%', '%%')}/slurm-%j.log"
    pairs: dict[str, str | int | None] = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks_per_node,
        "gpus-per-node": job.gpus_per_node,
        "cpus-per-task": job.cpus_per_task,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "chdir": job.directory,
        "output": log,
        "open-mode": "append",
        "signal": f"TERM@{job.grace}",
    }
    given = [f"{name}={_option_value(value)}" for name, value in pairs.items() if value is not None]
    return [*given, "requeue", *(_further(option) for option in job.options)]


def _further(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"{name}={_option_value(value)}" if equals else name


def _option_value(value: str | int) -> str:
    """As sbatch reads its lines: double quotes keep spaces and `#`. Raises UserError for what they cannot keep."""
    text = str(value)
    if re.search(r'["\\\n\r]', text):
        raise UserError(f"sbatch cannot take {text!r}: no quotes, backslashes or line ends")
    return text if re.fullmatch(r"[\w./:%@,=+-]+", text) else f'"{text}"'
