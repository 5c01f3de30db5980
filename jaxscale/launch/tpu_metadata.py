"""What a TPU VM knows of its slice: from its environment on GKE, from the metadata server elsewhere."""

import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from jaxscale.errors import UserError
from jaxscale.launch.world import COORDINATOR, DEFAULT_PORT, Environment, World, address

# Device files of TPU VMs: v2 to v4, and newer ones.
_DEVICES = ("/dev/accel0", "/dev/vfio/0")
_SECONDS = 3.0

# Name of an instance attribute -> its text; None where there is none.
Attributes = Callable[[str], str | None]


def tpu_pod(environment: Environment) -> World | None:
    """The processes of a TPU slice, or of several, one a machine; None where there is no TPU."""
    if environment.get("JAX_PLATFORMS") == "cpu" or importlib.util.find_spec("libtpu") is None:
        return None
    if "TPU_WORKER_HOSTNAMES" in environment:
        return pod_of(environment)
    return pod_of({**pod_variables(metadata_attribute), **environment}) if has_tpu() else None


def has_tpu() -> bool:
    """Whether this machine has a TPU that JAX can use."""
    there = any(Path(device).exists() for device in _DEVICES)
    return there and importlib.util.find_spec("libtpu") is not None


def pod_of(environment: Environment) -> World | None:
    """Workers of a slice by its variables: TPU_WORKER_* within it, MEGASCALE_* between slices."""
    if "TPU_WORKER_HOSTNAMES" not in environment or "TPU_WORKER_ID" not in environment:
        return None
    workers = environment["TPU_WORKER_HOSTNAMES"].split(",")
    slices = int(environment.get("MEGASCALE_NUM_SLICES", "1"))
    mine = int(environment.get("MEGASCALE_SLICE_ID", "0"))
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", workers[0]).split(":")[0]
    host, port = address(environment.get(COORDINATOR, f"{first}:{DEFAULT_PORT}"))
    number = len(workers)
    hosts = tuple(
        worker if index == mine else f"worker {i} of slice {index}"
        for index in range(slices)
        for i, worker in enumerate(workers)
    )
    worker_id = mine * number + int(environment["TPU_WORKER_ID"])
    return World(number * slices, worker_id, host, port, "TPU pod", hosts)


def pod_variables(attribute: Attributes) -> dict[str, str]:
    """The same variables out of a TPU VM's attributes; none on another machine."""
    worker, endpoints = attribute("agent-worker-number"), attribute("worker-network-endpoints")
    if worker is None or endpoints is None:
        return {}
    lines = [line.partition(":") for line in (attribute("tpu-env") or "").splitlines()]
    found = {name.strip(): value.strip().strip("'\"") for name, _, value in lines}
    # Each worker's endpoint is NAME:PORT:ADDRESS.
    workers = ",".join(one.split(":")[-1] for one in endpoints.split(","))
    return {
        **{name: value for name, value in found.items() if name.startswith("MEGASCALE_")},
        "TPU_WORKER_ID": worker,
        "TPU_WORKER_HOSTNAMES": workers,
    }


def metadata_attribute(name: str) -> str | None:
    """Asks the metadata server of this machine. Raises UserError where a TPU VM's does not answer."""
    server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        raise UserError(
            f"this machine has a TPU, but its metadata server ({server}) does not answer: {error}; set "
            "JAXSCALE_COORDINATOR, JAXSCALE_NUM_PROCESSES and JAXSCALE_PROCESS_ID, or JAX_PLATFORMS=cpu"
        ) from None
