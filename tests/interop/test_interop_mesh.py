"""An import onto any mesh is the same import, and reads what its devices hold."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from interop_cases import WIDE, write_hf

from jaxscale.config.plan import Plan
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.pretrained import load_pretrained
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place

CHILD = Path(__file__).with_name("import_child.py")
COUNTS = Path("/proc/self/io")
COUNTED = pytest.mark.skipif(not COUNTS.exists(), reason="the system counts no bytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide")
    write_hf(path, num_shards=3)
    return path


def bytes_read(action: Callable[[], object]) -> int:
    """What this process asks of the system while `action` runs, as the system counts it."""

    def count() -> int:
        text = COUNTS.read_text()
        return int(text.split("rchar: ")[1].split()[0])

    own = -count() + count()  # What counting itself reads.
    before = count()
    action()
    return count() - before - own


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_every_mesh_holds_what_one_device_holds(axes: dict[str, int], folder: Path) -> None:
    alone = load_pretrained(str(folder), Plan(), make_mesh(Plan(), jax.devices()[:1]))
    spread = load_pretrained(str(folder), Plan(**axes))
    shardings = spread.placement.shardings(spread.model.description)
    assert spread.params.keys() == alone.params.keys()
    for path, array in spread.params.items():
        assert array.sharding == shardings[path]
        np.testing.assert_array_equal(array, alone.params[path])


def test_without_a_plan_all_devices_share_the_parameters(folder: Path) -> None:
    loaded = load_pretrained(str(folder))
    assert loaded.placement.plan.fsdp == jax.device_count() == 8
    assert loaded.params["layers/mlp/up"].addressable_shards[0].data.shape == (2, 4, 40)


@COUNTED
def test_each_device_costs_the_bytes_that_it_holds(tmp_path: Path) -> None:
    # Rows of 4096 columns: the eighth that a device holds of a row is 2 KB, far above what is read in one go.
    section = WIDE.model_copy(update={"embed_dim": 4096, "num_layers": 1, "vocab_size": 64})
    write_hf(tmp_path, section)
    source = open_hf(str(tmp_path))
    plan = Plan(fsdp=8)
    shardings = place(plan, make_mesh(plan), source.model.description).shardings(
        source.model.description
    )
    for path, spec in source.model.description.items():
        shape = shardings[path].shard_shape(spec.shape)
        box = tuple(slice(0, size) for size in shape)
        read = bytes_read(lambda path=path, box=box: source.read(path, box))
        assert read == np.prod(shape) * 4, path


@COUNTED
def test_an_import_reads_every_tensor_once_though_many_devices_hold_it(folder: Path) -> None:
    source = open_hf(str(folder))
    total = sum(spec.num_bytes for spec in source.model.description.values())
    read = bytes_read(lambda: load_pretrained(str(folder), Plan(data=8)))
    files = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".json")
    small = 100_000  # Headers, config.json, and what JAX looks up.
    assert total <= read < files + small < 2 * total


@COUNTED
@pytest.mark.slow
def test_each_of_two_processes_reads_its_own_half(tmp_path: Path) -> None:
    write_hf(tmp_path, WIDE.model_copy(update={"embed_dim": 4096, "vocab_size": 1024}))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    arguments = [[sys.executable, str(CHILD), port, str(i), str(tmp_path)] for i in range(2)]
    children = [
        subprocess.Popen(one, env=environment, stdout=subprocess.PIPE, text=True)
        for one in arguments
    ]
    try:
        outputs = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for output in outputs:
        read, own, total = map(int, output.splitlines()[-1].split())
        assert own <= read < own + 100_000  # Of norms, which both hold, and what JAX looks up.
        assert own < 0.51 * total
