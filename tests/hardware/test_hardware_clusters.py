"""Clusters by name: what they are made of, how large, and what each bad name is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.errors import UserError
from jaxscale.hardware.catalogue import explain_name, parse_cluster
from jaxscale.hardware.cluster import Cluster
from jaxscale.hardware.gpu_families import GPU_FAMILIES
from jaxscale.hardware.tpu import TPU_FAMILIES

GIB = 2**30


def sizes_of(cluster: Cluster) -> dict[str, int]:
    return {dim.name: dim.size for dim in cluster.dims}


def wiring_of(cluster: Cluster) -> dict[str, str]:
    return {dim.name: dim.wiring for dim in cluster.dims}


# Published pods: How to Scale Your Model, 'TPUs', questions 1 and 2; Cloud TPU pages for the rest.
@pytest.mark.parametrize(
    ("name", "chips", "hosts", "flops"),
    [
        ("v5e:16x16", 256, 32, 5.1e16),
        ("v5p:16x20x28", 8960, 2240, 4e18),
        ("v6e:16x16", 256, 32, 234.9e15),
        ("v4:16x16x16", 4096, 1024, 1.1e18),
        ("v3:32x32", 1024, 256, 126e15),
        ("v7x:16x24x24", 9216, 2304, 21.26e18),
    ],
)
def test_a_pod_has_the_chips_hosts_and_flops_that_are_published(
    name: str, chips: int, hosts: int, flops: float
) -> None:
    cluster = parse_cluster(name)
    assert cluster.num_chips == chips
    assert cluster.num_devices / cluster.devices_per_host == hosts
    total = cluster.num_devices * cluster.chip.peak_flops["bfloat16"]
    assert total == pytest.approx(flops, rel=0.03)  # The source prints two or three digits.


@pytest.mark.parametrize(
    ("name", "total"),
    # The same questions: 4e12 and 860e12 bytes, printed from 16 GB and 96 GB a chip.
    [("v5e:16x16", 4e12), ("v5p:16x20x28", 860e12)],
)
def test_a_pod_has_the_memory_that_is_published(name: str, total: float) -> None:
    cluster = parse_cluster(name)
    assert cluster.num_devices * cluster.chip.hbm_bytes == pytest.approx(total, rel=0.06)


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        # Whole cubes of 4x4x4 wrap in every dim; anything less in none, not even in a dim of 4.
        ("v5p:4x4x4", "xyz"),
        ("v5p:4x4x8", "xyz"),
        ("v4:8x8x12", "xyz"),
        ("v7x:4x4x4", "xyz"),
        ("v5p:2x2x4", ""),
        ("v5p:2x4x4", ""),
        ("v4:2x2x1", ""),
        # v5e and v6e wrap where a dim is the pod's full 16, v3 at 32.
        ("v5e:16x16", "xy"),
        ("v5e:8x16", "y"),
        ("v6e:16x8", "x"),
        ("v6e:8x8", ""),
        ("v5e:4x4", ""),
        ("v3:32x32", "xy"),
        ("v3:16x32", "y"),
        ("v3:16x16", ""),
    ],
)
def test_a_torus_dim_wraps_only_where_the_links_exist(name: str, rings: str) -> None:
    wiring = wiring_of(parse_cluster(name))
    torus = {dim: kind for dim, kind in wiring.items() if dim in "xyz"}
    assert {dim for dim, kind in torus.items() if kind == "ring"} == set(rings)
    assert {dim for dim, kind in torus.items() if kind == "line"} == set(torus) - set(rings)


def test_a_gpu_cluster_has_nvlink_inside_nodes_and_the_network_between() -> None:
    node, nodes = parse_cluster("h100:8x4").dims
    assert (node.name, node.size, node.network, node.slow) == ("node", 8, "NVLink", False)
    assert (nodes.name, nodes.size, nodes.network, nodes.slow) == ("nodes", 4, "InfiniBand", True)
    assert node.bandwidth == 450e9  # 900 GB/s in both directions.
    assert nodes.bandwidth == 50e9  # 400 GB/s a node of eight.


def test_a_rack_of_gb200_is_one_nvlink_node_of_eighteen_hosts() -> None:
    rack = parse_cluster("gb200:72")
    assert sizes_of(rack) == {"node": 72}
    assert rack.num_devices // rack.devices_per_host == 18


def test_dims_of_size_one_are_left_out() -> None:
    assert sizes_of(parse_cluster("h100:8")) == {"node": 8}
    assert sizes_of(parse_cluster("h100:1x4")) == {"nodes": 4}
    assert sizes_of(parse_cluster("v5p:2x2x1")) == {"x": 2, "y": 2}
    assert parse_cluster("cpu:1").dims == ()
    assert parse_cluster("v5e:1x1").num_devices == 1


def test_slices_are_joined_by_the_slow_network_outside_the_torus() -> None:
    cluster = parse_cluster("v5e:16x16*4")
    assert sizes_of(cluster) == {"x": 16, "y": 16, "slices": 4}
    assert [dim.slow for dim in cluster.dims] == [False, False, True]
    assert cluster.dims[-1].bandwidth == 3.125e9  # 6.4 Tb/s a pod of 256.


def test_a_chip_of_two_devices_is_the_innermost_dim_and_shares_its_links() -> None:
    cluster = parse_cluster("v7x:4x4x8*2")
    assert sizes_of(cluster) == {"chip": 2, "x": 4, "y": 4, "z": 8, "slices": 2}
    assert (cluster.num_devices, cluster.num_chips) == (512, 256)
    one_chip = parse_cluster("v5p:4x4x8")
    assert cluster.dims[1].bandwidth == one_chip.dims[0].bandwidth / 2
    assert cluster.dims[0].bandwidth > cluster.dims[1].bandwidth
    # 12,800 FLOPs a byte of one axis in both directions is MaxText's figure for a whole chip.
    per_axis = 2 * 2 * cluster.dims[1].bandwidth
    assert 2 * cluster.chip.peak_flops["bfloat16"] / per_axis == pytest.approx(12800, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gib"),
    # What libtpu's compiler says is there when a program does not fit, a JAX device.
    [
        ("v4:4x4x4", 30.5),
        ("v5e:4x4", 15.75),
        ("v6e:4x4", 31.24),
        ("v5p:4x4x4", 95.73),
        ("v7x:4x4x4", 94.74),
    ],
)
def test_a_tpu_program_may_take_what_the_compiler_lets_it(name: str, gib: float) -> None:
    assert parse_cluster(name).usable_hbm == gib * GIB


@pytest.mark.parametrize(
    "family", [f for f in GPU_FAMILIES.values() if not f.whole_nodes], ids=lambda f: f.name
)
def test_a_gpu_program_may_take_a_little_less_than_the_board_has(family) -> None:
    """Boards hold GiB where they are sold as GB (80 GiB is 85.9e9), and lose 0.5 to 1 GiB to the context."""
    cluster = parse_cluster(f"{family.name}:1")
    assert 0.94 * cluster.chip.hbm_bytes < cluster.usable_hbm < 1.075 * cluster.chip.hbm_bytes


def test_cpu_devices_share_their_host() -> None:
    one, eight = parse_cluster("cpu:1"), parse_cluster("cpu:8")
    assert eight.num_devices == eight.devices_per_host == 8
    assert 8 * eight.usable_hbm == pytest.approx(one.usable_hbm)
    assert one.usable_hbm > GIB


@pytest.mark.parametrize(
    ("name", "same_as", "explained"),
    [
        ("v5p-128", "v5p:4x4x4", "v5p-128 is 64 chips (names count cores): v5p:4x4x4"),
        ("v5p-4096", "v5p:8x16x16", "2,048 chips"),
        ("v5p-12288", "v5p:16x16x24", "6,144 chips"),
        ("v5p-8", "v5p:2x2x1", "4 chips"),
        ("v5p-64", "v5p:2x4x4", "32 chips"),
        ("v4-128", "v4:4x4x4", "64 chips"),
        ("v3-256", "v3:8x16", "128 chips (names count cores), 256 JAX devices"),
        ("v5litepod-256", "v5e:16x16", "256 chips (names count chips)"),
        ("v5e-8", "v5e:2x4", "8 chips"),
        ("v6e-256*2", "v6e:16x16*2", "512 chips"),
        ("tpu7x-4x4x8", "v7x:4x4x8", "128 chips, 256 JAX devices"),
        ("tpu7x-128", "v7x:4x4x4", "64 chips (names count cores), 128 JAX devices"),
        ("tpu7x-2", "v7x:1x1x1", "is 1 chip (names count cores), 2 JAX devices"),
        ("tpu7x:4x4x4", "v7x:4x4x4", "64 chips, 128 JAX devices"),
        ("ironwood:4x4x4", "v7x:4x4x4", "64 chips"),
        ("V5P-128", "v5p:4x4x4", "64 chips"),
        ("a100-40gb:8", "a100-40:8", "8 A100 40GB"),
        ("a3-megagpu-8g*4", "a3-megagpu-8g:4", "32 H100 SXM, 4 nodes of 8, GPUDirect-TCPXO 200 Gb/s a GPU"),
        ("a3-ultragpu-8g*2", "a3-ultragpu-8g:2", "16 H200"),
        ("a2-highgpu-8g*2", "a2-highgpu-8g:2", "Ethernet 12.5 Gb/s a GPU"),
        ("p4d.24xlarge:2", "p4d.24xlarge:2", "16 A100 40GB, 2 nodes of 8, EFA 50 Gb/s a GPU"),
        ("Standard_ND96isr_H100_v5:2", "nd96isr_h100_v5:2", "InfiniBand 400 Gb/s a GPU"),
        ("h100:8x4", "h100:8x4", "h100:8x4 is 32 H100 SXM, 4 nodes of 8, InfiniBand 400 Gb/s a GPU"),
        ("gb200:72x2", "gb200:72x2", "144 GB200, 2 nodes of 72"),
        ("cpu:8", "cpu:8", "8 CPU devices of one host"),
    ],
)  # fmt: skip
def test_the_names_of_clouds_are_explained(name: str, same_as: str, explained: str) -> None:
    assert parse_cluster(name) == parse_cluster(same_as)
    assert explained in explain_name(name)


# From xpk's table of the slices that Google Cloud gives to who asks for a number of chips.
_XPK = [
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x4x12", "4x8x8", "4x4x20", "4x8x12", "8x8x8",
    "4x12x12", "4x8x20", "8x8x12", "4x12x20", "8x8x16", "8x12x12", "4x20x20", "8x12x16", "12x12x12", "8x16x16",
    "12x12x16", "8x8x44", "12x16x16", "4x28x28", "8x20x20", "16x16x16", "12x16x24", "12x20x20", "16x16x24",
    "12x24x24", "16x20x28",
]  # fmt: skip


@pytest.mark.parametrize("shape", _XPK)
def test_a_number_of_chips_has_the_shape_that_the_cloud_gives(shape: str) -> None:
    cluster = parse_cluster(f"v5p:{shape}")
    assert parse_cluster(f"v5p-{2 * cluster.num_chips}") == cluster


@pytest.mark.parametrize(
    ("name", "gpus", "per_gpu"),
    # As the papers give them: bytes/s a GPU between nodes.
    [
        ("selene:128", 1024, 25e9),
        ("jean_zay:48", 384, 6.25e9),
        ("torchtitan_grand_teton:16", 128, 50e9),
        ("mosaic_a100:2", 16, 25e9),
        ("llama3_roce:2048", 16384, 50e9),
        ("dgx_h100_superpod:32", 256, 50e9),
        ("h800:8x256", 2048, 50e9),
        ("a3-highgpu-8g:2", 16, 12.5e9),
        ("a3-megagpu-8g:2", 16, 25e9),
        ("p5.48xlarge:2", 16, 50e9),
    ],
)
def test_published_systems_have_their_networks(name: str, gpus: int, per_gpu: float) -> None:
    cluster = parse_cluster(name)
    assert cluster.num_devices == gpus
    assert cluster.dims[-1].slow
    assert cluster.dims[-1].bandwidth == per_gpu


def test_every_fact_of_every_family_carries_a_source() -> None:
    names = [
        f"{name}:{2 if family.whole_nodes else '2x2'}" for name, family in GPU_FAMILIES.items()
    ]
    largest = {name: max(family.rule.counts()) for name, family in TPU_FAMILIES.items()}
    for name, family in TPU_FAMILIES.items():
        shape = "x".join(map(str, family.rule.best(largest[name])))
        names.append(f"{name}:{shape}*2")
    for cluster in map(parse_cluster, [*names, "cpu:2"]):
        assert cluster.chip.source
        assert cluster.dims
        for dim in cluster.dims:
            assert len(dim.source) > 20
            assert dim.bandwidth > 0
            assert dim.latency > 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("b200x:8", "unknown chip 'b200x' (did you mean 'b200'?); there are cpu, v3, v4"),
        ("h10:8", "did you mean 'h100'?"),
        ("v2-8", "unknown chip 'v2'"),
        ("a3-megagpu-8:2", "did you mean 'a3-megagpu-8g'?"),
        ("", "for example cpu:8, h100:8x4"),
        ("h100", "h100: write h100:8x4 (GPUs a node x nodes)"),
        ("h100:", "'' is no size"),
        ("h100:8x", "'8x' is no size; write h100:8x4"),
        ("h100:eight", "'eight' is no size"),
        ("h100:8x4x2", "write h100:8x4"),
        ("h100:8*2", "write h100:8x4"),
        ("h100:16", "a node of h100 has 1 to 8 GPUs, not 16; nearest: h100:8x2"),
        ("h100:0", "a node of h100 has 1 to 8 GPUs, not 0; nearest: h100:8"),
        ("h100:8x0", "h100 takes 1 to 4,096 nodes, not 0"),
        ("h100:8x-1", "'8x-1' is no size"),
        ("h100:8x999999", "not 999,999"),
        ("selene:0", "not 0"),
        ("selene:2*3", "write selene:4 (nodes)"),
        ("v5p", "write v5p:2x4x4"),
        ("v5p:3x5x7", "v5p:3x5x7: no such slice; v5p has 2x2x1, 2x2x2, 2x2x4, 2x4x4, and three multiples of 4"),
        ("v5p:3x5x7", "nearest: v5p:4x4x4 or v5p:4x4x8"),  # 105 chips, between 64 and 128.
        ("v5p:4x4", "2 dims where a slice has 3"),
        ("v5p:2x4x8", "no such slice"),
        ("v5p:0x4x4", "no such slice"),
        ("v5p:16x20x32", "10,240 chips, more than the 8,960 of a pod"),
        ("v5e:3x5", "v5e has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16; nearest: v5e:2x4 or v5e:4x4"),
        ("v6e:16x32", "512 chips, more than the 256 of a pod"),
        ("v6e:32", "1 dims where a slice has 2"),
        ("v5e:16x16*0", "1 to 256 slices, not 0"),
        ("v5e:16x16*two", "'two' after * is no number"),
        ("v5p-100", "no v5p slice has 100 TensorCores, two a chip; nearest: v5p-64 (v5p:2x4x4) or v5p-128 (v5p:4x4x4)"),
        ("v5p-7", "nearest: v5p-8 (v5p:2x2x1)"),
        ("v5e-3", "no v5e slice has 3 chips; nearest: v5e-1 (v5e:1x1) or v5e-4 (v5e:2x2)"),
        ("cpu", "write cpu:8"),
        ("cpu:0", "1 to 512 CPU devices"),
        ("cpu:8x2", "write cpu:8"),
        ("nowhere/lab.yaml", "no cluster file nowhere/lab.yaml"),
    ],
)  # fmt: skip
def test_a_name_of_nothing_says_what_would_be_something(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_cluster(name)
    assert says in str(caught.value)


def tpu_names() -> st.SearchStrategy[str]:
    def shaped(family):
        shapes = [shape for count in family.rule.counts() for shape in family.rule.shapes(count)]
        return st.tuples(st.sampled_from(shapes).flatmap(st.permutations), st.integers(1, 9)).map(
            lambda pair: f"{family.name}:{'x'.join(map(str, pair[0]))}*{pair[1]}"
        )

    return st.sampled_from(list(TPU_FAMILIES.values())).flatmap(shaped)


def gpu_names() -> st.SearchStrategy[str]:
    def sized(family):
        sizes = st.tuples(st.integers(1, family.node), st.integers(1, 4096))
        return sizes.map(lambda size: f"{family.name}:{size[0]}x{size[1]}")

    return st.sampled_from(list(GPU_FAMILIES.values())).flatmap(sized)


def cluster_names() -> st.SearchStrategy[str]:
    return tpu_names() | gpu_names() | st.integers(1, 512).map("cpu:{}".format)


@given(cluster_names())
def test_the_name_of_a_cluster_names_the_same_cluster(name: str) -> None:
    cluster = parse_cluster(name)
    assert parse_cluster(cluster.name) == cluster


@given(st.text(alphabet="v5phe341027xcua:*-. ", max_size=12))
def test_any_other_text_is_a_user_error(text: str) -> None:
    try:
        cluster = parse_cluster(text)
    except UserError:
        return
    assert cluster.num_devices >= 1
