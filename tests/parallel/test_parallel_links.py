"""The attached devices as a cluster, and the speed of what joins them."""

from importlib.util import find_spec
from itertools import product

import jax
import numpy as np
import pytest

from jaxscale.hardware.catalogue import cluster_to_yaml, load_cluster_file, parse_cluster
from jaxscale.hardware.cluster import Dim
from jaxscale.parallel.attached import (
    DeviceFacts,
    UnknownDevices,
    attached_cluster,
    cluster_of,
    facts_of,
    physical_grid,
)
from jaxscale.parallel.link_benchmark import (
    LinkSpeed,
    _crossing_bytes,
    _gather,
    _hops,
    _permute,
    _program,
    _reduce,
    here,
    measured_cluster,
)
from jaxscale.parallel.topology import abstract_devices
from jaxscale.planner.costs.network import axis_links

H100 = "NVIDIA H100 80GB HBM3"
# How JAX calls the chips of a slice, as libtpu's own topologies have it.
TPU_KINDS = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v7x": "TPU7x", "v4": "TPU v4"}


def tpu(
    family: str, shape: tuple[int, int, int], *, slices: int = 1, cores: int = 1
) -> list[DeviceFacts]:
    """Devices as JAX lists them: cores of a chip, then x, y and z; each slice counts from its own corner."""
    x, y, z = shape
    return [
        DeviceFacts(TPU_KINDS[family], "tpu", 0, index, (i, j, k), core)
        for index, k, j, i, core in product(
            range(slices), range(z), range(y), range(x), range(cores)
        )
    ]


def gpus(
    per_node: int, nodes: int, *, per_process: int, fabric: bool = False, kind: str = H100
) -> list[DeviceFacts]:
    """`fabric`: JAX sees all nodes as one slice."""
    return [
        DeviceFacts(kind, "gpu", index // per_process, 0 if fabric else index // per_node)
        for index in range(per_node * nodes)
    ]


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        (tpu("v5e", (1, 1, 1)), "v5e:1x1"),
        (tpu("v5e", (4, 2, 1)), "v5e:4x2"),
        (tpu("v5e", (4, 4, 1), slices=2), "v5e:4x4*2"),
        (tpu("v5p", (2, 2, 4)), "v5p:2x2x4"),
        (tpu("v4", (4, 4, 8)), "v4:4x4x8"),
        (tpu("v7x", (2, 2, 1), cores=2), "v7x:2x2x1"),
        (gpus(1, 1, per_process=1), "h100:1"),
        (gpus(8, 4, per_process=8), "h100:8x4"),
        (gpus(8, 4, per_process=1), "h100:8x4"),
        (gpus(8, 2, per_process=8, fabric=True), "h100:8x2"),
        (gpus(36, 2, per_process=4, fabric=True, kind="NVIDIA GB200"), "gb200:72"),
        ([DeviceFacts("cpu", "cpu")] * 6, "cpu:6"),
    ],
)
def test_devices_are_recognized_as_the_catalogue_has_them(
    devices: list[DeviceFacts], name: str
) -> None:
    assert cluster_of(devices) == parse_cluster(name)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([DeviceFacts("NVIDIA Riva 128", "gpu")] * 2, "no table describes 2 x NVIDIA Riva 128"),
        ([*gpus(1, 1, per_process=1), DeviceFacts("NVIDIA H200", "gpu")], "H100.* and NVIDIA H200"),
        (gpus(8, 2, per_process=8)[:12], r"different numbers of h100 \(8, 4\)"),
        (tpu("v5p", (2, 2, 2))[:6], r"6 devices of the 8 of v5p:2x2x2"),
        (tpu("v5e", (3, 1, 1)), "no such slice"),
        (tpu("v5e", (2, 2, 1)) + tpu("v5e", (2, 4, 1), slices=2)[8:], "different shapes"),
    ],
)
def test_others_are_named(devices: list[DeviceFacts], message: str) -> None:
    with pytest.raises(UnknownDevices, match=message):
        cluster_of(devices)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is in the extra `aot`")
@pytest.mark.parametrize("name", ["v5p:2x2x2", "v5e:4x4*2", "v7x:2x2x1"])
def test_devices_of_libtpu_are_recognized_and_put_in_their_places(name: str) -> None:
    cluster = parse_cluster(name)
    devices = abstract_devices(cluster)
    assert attached_cluster(devices) == cluster
    grid = physical_grid(cluster, devices[::-1])
    for place in np.ndindex(grid.shape):
        facts, inner = facts_of(grid[place]), place[::-1]
        dims = {dim.name: inner[number] for number, dim in enumerate(cluster.dims)}
        assert facts.slice == dims.get("slices", 0)
        assert facts.coords == tuple(dims.get(dim, 0) for dim in "xyz")
        assert facts.core == dims.get("chip", 0)


@pytest.mark.parametrize("wiring", ["ring", "line", "switch"])
def test_times_become_bandwidths_as_the_planner_turns_bandwidths_into_times(wiring: str) -> None:
    """The planner's seconds over a dim with the measured speed are the seconds that were measured."""
    size, volume, seconds = 8, 2**30, 0.25
    dim = Dim("d", size, "n", wiring, 1.0, 1e-6, "")
    cluster = parse_cluster("cpu:8")
    speed = LinkSpeed(
        "d", size, _crossing_bytes(dim, volume) / seconds, 1.0, 1.0, 3e-6 / _hops(dim)
    )
    measured = measured_cluster(type(cluster)(**{**vars(cluster), "dims": (dim,)}), [speed])
    links = axis_links(measured, [size], [1])
    assert volume / links.fast_bandwidth == pytest.approx(seconds, rel=1e-12)
    assert links.latency == pytest.approx(3e-6, rel=1e-12)


@pytest.mark.parametrize(
    ("operation", "instruction", "wanted"),
    [
        # Each device passes on a part of its neighbor: three times is three places on.
        (_gather, "all-gather", np.roll(np.arange(8.0), -3)),
        (_permute, "collective-permute", np.roll(np.arange(8.0), 3)),
        (_reduce, "all-reduce", np.full(8, 3.5)),
    ],
)
def test_what_is_timed_is_the_collective(operation, instruction: str, wanted: np.ndarray) -> None:
    """The compiler has not replaced it by something cheaper, and its result is right."""
    cluster = parse_cluster("cpu:8")
    mesh = jax.sharding.Mesh(physical_grid(cluster, jax.devices()), ("host",))
    run = _program(operation, mesh, cluster.dims[0])
    parts = jax.device_put(np.arange(8.0, dtype=np.float32), jax.NamedSharding(mesh, jax.P("host")))
    np.testing.assert_array_equal(run(parts, 3), wanted)
    text = run.lower(parts, 3).compile().as_text()
    assert {"all-gather", "collective-permute", "all-reduce"} & {
        name
        for name in ("all-gather", "collective-permute", "all-reduce")
        if f" {name}(" in text or f" {name}-start(" in text
    } == {instruction}


def test_here_is_this_machine_with_its_own_numbers(tmp_path) -> None:
    plain, measured = here(measure=False), here(measure=True)
    assert plain == parse_cluster("cpu:8")
    (dim,) = measured.dims
    assert (dim.size, measured.num_devices) == (8, 8)
    assert dim.bandwidth > 0
    assert dim.latency > 0
    assert "measured here" in dim.source
    assert "one memory" in dim.source
    path = tmp_path / "here.yaml"
    path.write_text(cluster_to_yaml(measured))
    assert load_cluster_file(path) == measured


def test_one_device_has_no_links_to_measure() -> None:
    assert here(measure=True, devices=jax.devices()[:1]) == parse_cluster("cpu:1")
