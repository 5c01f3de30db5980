"""One of two processes of four devices, which imports its half. Arguments: PORT INDEX DIRECTORY."""

import sys
from pathlib import Path

import jax
import numpy as np

from jaxscale.config.plan import Plan
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.open_model import load_params
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place


def bytes_read() -> int:
    """What this process has asked of the system so far."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def main(port: str, index: int, directory: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    plan = Plan(fsdp=8)
    source = open_hf(directory)
    placement = place(plan, make_mesh(plan), source.model.description)
    shardings = placement.shardings(source.model.description)
    before = bytes_read()
    params = load_params(source, shardings)
    read, own = bytes_read() - before, 0
    for path, array in params.items():
        for number, shard in enumerate(array.addressable_shards):
            start = [range_.start or 0 for range_ in shard.index]
            box = tuple(slice(a, a + n) for a, n in zip(start, shard.data.shape, strict=True))
            np.testing.assert_array_equal(np.asarray(shard.data), source.read(path, box))
            own += 0 if number and array.sharding.is_fully_replicated else shard.data.nbytes
    print(read, own, sum(spec.num_bytes for spec in source.model.description.values()))


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
