"""Which of how many processes this is: read from what started it.

Flags and `JAXSCALE_*` variables come first; then JobSet, Slurm, Open MPI and TPU pods, in their own words.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jaxscale.errors import UserError
from jaxscale.launch.slurm_hosts import expand_hosts, expand_tasks

COORDINATOR, NUM_PROCESSES = "JAXSCALE_COORDINATOR", "JAXSCALE_NUM_PROCESSES"
PROCESS_ID, LOCAL_DEVICES = "JAXSCALE_PROCESS_ID", "JAXSCALE_LOCAL_DEVICES"
HOSTS = "JAXSCALE_HOSTS"
JOB_INDEX, PROCESSES_PER_JOB = "JAXSCALE_JOB_INDEX", "JAXSCALE_PROCESSES_PER_JOB"
COMPLETION_INDEX = "JOB_COMPLETION_INDEX"
DEFAULT_PORT = 8476
_FLAGS = "JAXSCALE_* variables"
# Jobs that share a machine must not share a port: theirs follow from the job's number (as in JAX).
_FIRST_PORT, _NUM_PORTS = 61440, 4096

Environment = Mapping[str, str]


@dataclass(frozen=True)
class World:
    """`num_processes` processes that meet at process 0, on `coordinator`:`port`; this one is `process_id`.

    source: who said so. hosts: the machine of each process, empty where it is not known.
    local_devices: which of the machine's devices are this process's; None: all that it sees.
    """

    num_processes: int
    process_id: int
    coordinator: str
    port: int
    source: str
    hosts: tuple[str, ...] = ()
    local_devices: tuple[int, ...] | None = None

    def name(self, process: int) -> str:
        """`process 3 on node7`, or `process 3` where nobody has said where it is."""
        known = self.hosts[process] if process < len(self.hosts) else ""
        return f"process {process} on {known}" if known else f"process {process}"


def find_world(
    environment: Environment, *, tpu_pod: Callable[[Environment], World | None] | None = None
) -> World | None:
    """The processes that this one belongs to; None for a process by itself. A world of one that flags ask for is kept:
    its devices talk as those of several processes do, so that its losses are bitwise theirs.

    tpu_pod: asks a TPU VM's metadata server; left out where there is no TPU.
    Raises UserError for variables that say half of it or contradict each other.
    """
    finders = (_of_jobset, _of_flags, _of_slurm, _of_open_mpi, tpu_pod or _of_nothing)
    world = next((world for find in finders if (world := find(environment)) is not None), None)
    if world is None or (world.num_processes == 1 and world.source != _FLAGS):
        return None
    if not 0 <= world.process_id < world.num_processes:
        raise UserError(
            f"{world.source}: process {world.process_id} of {world.num_processes}; processes count from 0, "
            f"the last one is {world.num_processes - 1}"
        )
    if world.hosts and len(world.hosts) != world.num_processes:
        raise UserError(
            f"{world.source}: {len(world.hosts)} hosts for {world.num_processes} processes; {HOSTS} names the "
            "machine of each process, separated by commas"
        )
    return world


def address(text: str, what: str = COORDINATOR) -> tuple[str, int]:
    """`host` or `host:port`; IPv6 hosts in brackets. Raises UserError for a port that is none."""
    match = re.fullmatch(
        r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d{1,5}))?", text
    )
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise UserError(f"{what}={text!r} is no address; write HOST:PORT, for example node1:8476")
    return match["six"] or match["host"], port


def _of_nothing(_environment: Environment) -> World | None:
    return None


def _of_flags(environment: Environment) -> World | None:
    """Ours. The coordinator alone says nothing: with it, another starter's address is overruled."""
    if NUM_PROCESSES not in environment and PROCESS_ID not in environment:
        return None
    missing = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if name not in environment]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} is not set, but other JAXSCALE_* variables are: a process needs the address "
            "of process 0, the number of processes, and its own number from 0 on"
        )
    host, port = address(environment[COORDINATOR])
    return World(
        num_processes=_number(environment, NUM_PROCESSES, least=1),
        process_id=_number(environment, PROCESS_ID),
        coordinator=host,
        port=port,
        source=_FLAGS,
        hosts=tuple(filter(None, environment.get(HOSTS, "").split(","))),
        local_devices=_local_devices(environment),
    )


def _of_jobset(environment: Environment) -> World | None:
    """A pod of a JobSet's indexed job: the manifest says how many there are, Kubernetes which one this is."""
    wanted = (COMPLETION_INDEX, NUM_PROCESSES, COORDINATOR)
    if PROCESS_ID in environment or not all(name in environment for name in wanted):
        return None
    host, port = address(environment[COORDINATOR])
    count = _number(environment, NUM_PROCESSES, least=1)
    per_job = _number({PROCESSES_PER_JOB: str(count), **environment}, PROCESSES_PER_JOB, least=1)
    job = _number({JOB_INDEX: "0", **environment}, JOB_INDEX)
    index = _number(environment, COMPLETION_INDEX)
    # The first pod is named as every other one: SET-ROLE-JOB-POD.SUBDOMAIN.
    stem = re.fullmatch(r"(?P<stem>.+)-0-0(\..*)?", host)
    hosts = [f"{stem['stem']}-{i // per_job}-{i % per_job}" if stem else "" for i in range(count)]
    return World(count, job * per_job + index, host, port, "Kubernetes JobSet", tuple(hosts))


def _of_slurm(environment: Environment) -> World | None:
    """A task of a step (srun); in the batch script itself there is no step, and the process is alone."""
    wanted = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
    if not all(name in environment for name in wanted):
        return None
    nodes = expand_hosts(environment["SLURM_STEP_NODELIST"])
    tasks = expand_tasks(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    count = _number(environment, "SLURM_STEP_NUM_TASKS", least=1)
    blocks = [node for node, number in zip(nodes, tasks, strict=False) for _ in range(number)]
    port = _FIRST_PORT + _number(environment, "SLURM_JOB_ID") % _NUM_PORTS
    host, port = _coordinator(environment, nodes[0], port)
    world = World(
        count, _number(environment, "SLURM_PROCID"), host, port, "Slurm",
        tuple(blocks) if len(blocks) == count else (),
    )  # fmt: skip
    here = world.hosts.count(world.hosts[world.process_id]) if world.hosts else 1
    return replace(world, local_devices=_share(environment, "SLURM_LOCALID", here))


def _of_open_mpi(environment: Environment) -> World | None:
    wanted = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    if not all(name in environment for name in wanted):
        return None
    count = _number(environment, "OMPI_COMM_WORLD_SIZE", least=1)
    here = _number({"OMPI_COMM_WORLD_LOCAL_SIZE": "1", **environment}, "OMPI_COMM_WORLD_LOCAL_SIZE")
    host, port = _coordinator(environment, *_mpi_address(environment, alone=here == count))
    return World(
        count, _number(environment, "OMPI_COMM_WORLD_RANK"), host, port, "Open MPI",
        local_devices=_share(environment, "OMPI_COMM_WORLD_LOCAL_RANK", here),
    )  # fmt: skip


def _mpi_address(environment: Environment, *, alone: bool) -> tuple[str, int]:
    """The launcher's own machine, where it starts rank 0 unless it is told otherwise (Open MPI 4; 5 does not say)."""
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    match = re.match(r"(\d+)\..*?(?:tcp://([^:,]+)|tcp6://\[([^\],]+))", uri)
    if match is not None:
        job = int(match[1]) // 2**12
        return match[2] or match[3], _FIRST_PORT + job % _NUM_PORTS
    if alone:
        return "127.0.0.1", DEFAULT_PORT
    if COORDINATOR in environment:
        return address(environment[COORDINATOR])
    raise UserError(
        f"Open MPI does not say where rank 0 runs; set {COORDINATOR}=HOST:PORT of that machine for all processes "
        f"(mpirun -x {COORDINATOR}=node1:{DEFAULT_PORT} ...)"
    )


def _coordinator(environment: Environment, host: str, port: int) -> tuple[str, int]:
    """What the user says, else what was found."""
    given = environment.get(COORDINATOR)
    return address(given) if given else (host, port)


def _share(environment: Environment, local_id: str, here: int) -> tuple[int, ...] | None:
    """A process's part of the GPUs that it sees, where several processes of a machine see the same ones."""
    if LOCAL_DEVICES in environment:
        return _local_devices(environment)
    if here == 1 or local_id not in environment:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").count(",") + 1
    index = _number(environment, local_id)
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return (index,)
    if visible == 1:
        return None
    if visible % here:
        raise UserError(
            f"{visible} GPUs are visible to {here} processes of this machine; use as many processes as GPUs"
        )
    each = visible // here
    return tuple(range(index * each, (index + 1) * each))


def _local_devices(environment: Environment) -> tuple[int, ...] | None:
    text = environment.get(LOCAL_DEVICES)
    if text is None:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"{LOCAL_DEVICES}={text!r}: write device numbers, for example 0,1")
    return tuple(map(int, text.split(",")))


def _number(environment: Environment, name: str, least: int = 0) -> int:
    text = environment[name]
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise UserError(f"{name}={text!r} is no whole number from {least} on")
    return int(text)
