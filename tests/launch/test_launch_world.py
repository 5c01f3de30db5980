"""Who a process is, by what its starter has put into its environment."""

import pytest

from jaxscale.errors import UserError
from jaxscale.launch.slurm_hosts import expand_hosts, expand_tasks
from jaxscale.launch.tpu_metadata import pod_of, pod_variables
from jaxscale.launch.world import World, address, find_world

OURS = {
    "JAXSCALE_COORDINATOR": "node1:1234",
    "JAXSCALE_NUM_PROCESSES": "2",
    "JAXSCALE_PROCESS_ID": "1",
}
# `srun -N3 -n5` in job 70001, in the words of srun(1); the third task is the first of the second node.
SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "node[08-10]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
JOBSET = {
    "JAXSCALE_COORDINATOR": "llama-worker-0-0.llama:8476",
    "JAXSCALE_NUM_PROCESSES": "8",
    "JAXSCALE_PROCESSES_PER_JOB": "4",
    "JAXSCALE_JOB_INDEX": "1",
    "JOB_COMPLETION_INDEX": "2",
}
GKE_TPU = {
    "TPU_WORKER_ID": "1",
    "TPU_WORKER_HOSTNAMES": "t-0.s,t-1.s",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "t0-0.s:8080",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # A batch script: no step.
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"JOB_COMPLETION_INDEX": "3"},  # An indexed job of independent pods.
        {"JAXSCALE_COORDINATOR": "node1"},
    ],
)
def test_a_process_by_itself(environment: dict[str, str]) -> None:
    assert find_world(environment) is None


def test_our_own_variables_come_first() -> None:
    world = find_world({**SLURM, **OURS, "JAXSCALE_HOSTS": "a,b", "JAXSCALE_LOCAL_DEVICES": "2,3"})
    assert world == World(2, 1, "node1", 1234, "JAXSCALE_* variables", ("a", "b"), (2, 3))


def test_a_world_of_one_that_was_asked_for_is_one() -> None:
    """`launch -n 1` talks as `-n 4` does; a pod of one process needs nothing."""
    one = {**OURS, "JAXSCALE_NUM_PROCESSES": "1", "JAXSCALE_PROCESS_ID": "0"}
    found = find_world(one)
    assert found is not None
    assert found.num_processes == 1


def test_slurm() -> None:
    """The port is the job's: 61440 + 70001 mod 4096 = 61440 + 369, as JAX counts it."""
    hosts = ("node08", "node08", "node09", "node09", "node10")
    assert find_world(SLURM) == World(5, 2, "node08", 61809, "Slurm", hosts, (0,))


def test_slurm_tasks_share_the_gpus_that_they_all_see() -> None:
    seen = {**SLURM, "SLURM_LOCALID": "1"}
    assert _devices({**seen, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == (2, 3)
    assert _devices({**seen, "CUDA_VISIBLE_DEVICES": "1"}) is None  # Bound to its own.
    last = {**SLURM, "SLURM_PROCID": "4"}
    assert _devices({**last, "CUDA_VISIBLE_DEVICES": "0,1"}) is None  # Alone on its node.


def _devices(environment: dict[str, str]) -> tuple[int, ...] | None:
    found = find_world(environment)
    assert found is not None
    return found.local_devices


def test_open_mpi() -> None:
    """Job 1531576320 / 4096 = 373920, mod 4096 = 1184: port 62624, as JAX counts it."""
    assert find_world(MPI) == World(4, 3, "10.96.0.1", 62624, "Open MPI", (), (1,))
    said = find_world({**MPI, "JAXSCALE_COORDINATOR": "node1:99"})
    assert (said and (said.coordinator, said.port)) == ("node1", 99)


def test_a_pod_of_a_jobset() -> None:
    """Job 1 of 2, pod 2 of 4: process 6. Every pod's name follows from the first one's."""
    world = find_world(JOBSET)
    assert world is not None
    assert (world.num_processes, world.process_id, world.port) == (8, 6, 8476)
    assert world.coordinator == "llama-worker-0-0.llama"
    assert world.name(3) == "process 3 on llama-worker-0-3"
    assert world.name(6) == "process 6 on llama-worker-1-2"


def test_workers_of_two_tpu_slices() -> None:
    world = find_world(GKE_TPU, tpu_pod=pod_of)
    assert world is not None
    assert (world.num_processes, world.process_id, world.coordinator) == (4, 3, "t0-0.s")
    assert world.name(2) == "process 2 on t-0.s"
    assert world.name(1) == "process 1 on worker 1 of slice 0"


def test_a_tpu_vm_by_its_metadata() -> None:
    """Attributes as a v4-16 of two workers has them."""
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.1.0.5,unknown:unknown:10.1.0.6",
        "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\nMEGASCALE_NUM_SLICES: '1'\n",
    }
    assert pod_variables(attributes.get) == {
        "TPU_WORKER_ID": "1",
        "TPU_WORKER_HOSTNAMES": "10.1.0.5,10.1.0.6",
        "MEGASCALE_NUM_SLICES": "1",
    }
    assert pod_variables({}.get) == {}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"JAXSCALE_PROCESS_ID": "0"},
            "JAXSCALE_COORDINATOR and JAXSCALE_NUM_PROCESSES is not set",
        ),
        ({**OURS, "JAXSCALE_PROCESS_ID": "2"}, "process 2 of 2"),
        ({**OURS, "JAXSCALE_PROCESS_ID": "-1"}, "JAXSCALE_PROCESS_ID='-1' is no whole number"),
        ({**OURS, "JAXSCALE_NUM_PROCESSES": "0"}, "no whole number from 1 on"),
        ({**OURS, "JAXSCALE_COORDINATOR": "node1:http"}, "write HOST:PORT"),
        ({**OURS, "JAXSCALE_COORDINATOR": "node1:70000"}, "write HOST:PORT"),
        ({**OURS, "JAXSCALE_HOSTS": "a,b,c"}, "3 hosts for 2 processes"),
        ({**OURS, "JAXSCALE_LOCAL_DEVICES": "a"}, "write device numbers"),
        ({**SLURM, "SLURM_STEP_NODELIST": "node[1"}, "no Slurm host list"),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2"}, "3 GPUs are visible to 2 processes"),
        ({**MPI, "OMPI_MCA_orte_hnp_uri": ""}, "Open MPI does not say where rank 0 runs"),
    ],
)
def test_half_of_the_truth_is_an_error(environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as raised:
        find_world(environment)
    assert words in str(raised.value)


def test_hosts_of_slurm() -> None:
    """Forms that the manual pages of Slurm show."""
    assert expand_hosts("login") == ["login"]
    assert expand_hosts("a[1-3,07],b-x") == ["a1", "a2", "a3", "a07", "b-x"]
    assert expand_hosts("r[0-1]n[08-09].c") == ["r0n08.c", "r0n09.c", "r1n08.c", "r1n09.c"]
    assert expand_tasks("2(x3),1") == [2, 2, 2, 1]


def test_addresses() -> None:
    assert address("node1") == ("node1", 8476)
    assert address("[fe80::1]:99") == ("fe80::1", 99)
