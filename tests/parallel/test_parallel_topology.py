"""Machines that are not there: their devices, and meshes over them."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.parallel.errors import PlacementError
from jaxscale.parallel.gpu_targets import GPU_TARGETS
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.topology import abstract_devices, prepare_process


def has(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


HAS_LIBTPU = find_spec("libtpu") is not None
HAS_CUDA = all(map(has, ("jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-nvvm")))
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed")
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="CUDA's compiler is not installed")


def sizes(mesh: Mesh) -> dict[str, int]:
    return {axis: size for axis, size in mesh.shape.items() if size > 1}


def test_a_cpu_cluster_is_the_first_attached_devices() -> None:
    assert abstract_devices(cluster_by_name("cpu:4")) == jax.devices("cpu")[:4]


def test_more_cpu_devices_than_there_are_name_the_variable_that_makes_them() -> None:
    with pytest.raises(UserError, match=r"has 16 devices, this process 8.*JAX_NUM_CPU_DEVICES=16"):
        abstract_devices(cluster_by_name("cpu:16"))


@pytest.mark.parametrize("name", ["v3:2x2", "h100:8x2"])
def test_a_chip_that_no_compiler_knows_names_those_that_it_knows(name: str) -> None:
    cluster = cluster_by_name(name)
    strange = replace(cluster, chip=replace(cluster.chip, name="Abacus"))
    with pytest.raises(UserError, match=r"cannot compile for Abacus; .* (TPU v5p|H100 SXM)"):
        abstract_devices(strange)


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_a_missing_tpu_compiler_says_what_installs_it() -> None:
    with pytest.raises(UserError, match=r"v5p:4x4x4 needs libtpu: pip install 'jaxscale\[aot\]'"):
        abstract_devices(cluster_by_name("v5p:4x4x4"))


@pytest.mark.skipif(HAS_CUDA, reason="CUDA's compiler is installed")
def test_a_missing_cuda_compiler_says_what_installs_it() -> None:
    with pytest.raises(UserError, match=r"needs .*nvidia-nvvm: pip install 'jaxscale\[aot\]'"):
        abstract_devices(cluster_by_name("h100:8x1"))


def test_a_plan_for_another_number_of_devices_is_refused() -> None:
    with pytest.raises(PlacementError, match="4 devices, but 8 are attached"):
        make_mesh(Plan(fsdp=4), jax.devices())


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("v4:2x2x1", "TPU v4"),
        ("v5e:1x1", "TPU v5 lite"),
        ("v5e:2x4", "TPU v5 lite"),
        ("v5p:2x2x1", "TPU v5"),
        ("v5p:4x4x8", "TPU v5"),
        ("v6e:16x16", "TPU v6 lite"),
        ("v7x:2x2x1", "TPU7x"),
        ("v5e:4x4*2", "TPU v5 lite"),
    ],
)
def test_a_tpu_slice_has_its_devices(name: str, kind: str) -> None:
    prepare_process()
    cluster = cluster_by_name(name)
    devices = abstract_devices(cluster)
    assert len(devices) == cluster.num_devices
    assert {device.device_kind for device in devices} == {kind}


@needs_libtpu
def test_the_last_axis_stays_within_a_slice_and_the_first_crosses() -> None:
    prepare_process()
    devices = abstract_devices(cluster_by_name("v5e:4x4*2"))
    mesh = make_mesh(Plan(data=2, fsdp=8, tensor=2), devices)
    replicas = np.moveaxis(mesh.devices, mesh.axis_names.index("data"), 0)
    assert [{device.slice_index for device in part.flat} for part in replicas] == [{0}, {1}]


@needs_libtpu
def test_axes_share_a_torus_dim_where_they_must() -> None:
    """32 of 64 chips: two whole dims of four and half of the third."""
    prepare_process()
    devices = abstract_devices(cluster_by_name("v5p:4x4x4"))
    mesh = make_mesh(Plan(data=2, fsdp=32), devices)
    assert sizes(mesh) == {"data": 2, "fsdp": 32}
    assert len({device.id for device in mesh.devices.flat}) == 64


@needs_libtpu
def test_axes_that_do_not_split_over_the_slices_are_refused() -> None:
    """Three slices of four chips: 3 x 4 fits them, an axis of seven does not."""
    prepare_process()
    devices = abstract_devices(cluster_by_name("v5e:2x2*3"))
    assert sizes(make_mesh(Plan(data=3, fsdp=4), devices)) == {"data": 3, "fsdp": 4}
    uneven = [*devices[:3], *devices[4:6], *devices[8:9], devices[9]]
    with pytest.raises(PlacementError, match=r"\(fsdp=7\) do not split over 3 slices"):
        make_mesh(Plan(fsdp=7), uneven)


@needs_cuda
@pytest.mark.parametrize(
    "name", ["a100:8x1", "a100-40:8x1", "h100:8x2", "h200:1x1", "b200:8x1", "gb200:4x1"]
)
def test_a_product_compiles_for_a_gpu_that_is_not_there(name: str) -> None:
    prepare_process()
    cluster = cluster_by_name(name)
    devices = abstract_devices(cluster)
    mesh = make_mesh(Plan(fsdp=cluster.num_devices), devices)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    rows = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=split)
    compiled = jax.jit(jnp.matmul).lower(rows, rows).compile()
    assert "dot(" in (compiled.as_text() or "")
    assert devices[0].device_kind == GPU_TARGETS[cluster.chip.name].name
