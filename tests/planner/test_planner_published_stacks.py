"""What published software does that its rows do not spell out: constants, dtypes, layouts of devices and of layers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planner_cases import DENSE, ROUTED, line, predicted
from planner_truth.choices import best_option, published_choice
from planner_truth.conventions import counted_flops
from planner_truth.layouts import layouts
from planner_truth.models import shape_of
from planner_truth.settings import mesh_and_cluster
from planner_truth.software import LLAMA3, MEGATRON_CORE, NEMO
from planner_truth.stacks import software_of
from planner_truth.values import Chosen
from published import FILE, a_case

from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.planner.costs.schedules import microbatches_in_flight
from jaxscale.planner.model.parameters import num_parameters, parameter_groups
from jaxscale.planner.model.sizes import mesh_columns
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.spread import default_spread
from jaxscale.planner.vocabulary.formula import Table
from jaxscale.planner.vocabulary.layout import Layout
from jaxscale.planner.vocabulary.stack import Stack

TOKENS = 16 * 2048
MCORE = {"context_shares": False, "lockstep": False, "looks_up": False}


def stack(name: str, source: str = "", **given: Any) -> Stack:
    return software_of(a_case(given, id=f"{name}-1", source=source)).stack


def test_a_stack_that_nobody_has_seen_has_the_constant_of_its_chips_alone() -> None:
    assert stack("tt").efficiency != 1
    assert stack("zzz", hw="gpu.H100").efficiency == stack("zzz", hw="tpu.v5p").efficiency == 1
    # The software that a source names is the one that was calibrated.
    assert stack("zzz", "pytorch/torchtitan benchmarks").efficiency == stack("tt").efficiency


def test_a_model_in_an_id_is_not_the_software() -> None:
    bridge = "NVIDIA-NeMo/Megatron-Bridge docs"
    assert stack("nemo-b200-deepseek-v3", bridge).source == NEMO.stack.source
    assert stack("x-deepseek-v3", "NVIDIA-NeMo/Automodel docs", hw="gpu.H100").name == "torchtitan"
    assert stack("mcore").source == MEGATRON_CORE.stack.source
    assert stack("dsv3").name == "deepseek"


def test_megatron_on_gpus_after_ampere_is_megatron_core() -> None:
    source = "NVIDIA/Megatron-LM README"
    assert stack("x", source, hw="gpu.A100_80").name == "megatron"
    assert stack("x", source, hw="gpu.H100").name == "megatron-core"


def test_a_row_may_name_sequence_parallelism() -> None:
    sheets = "arXiv:2311.05610"
    assert not stack("x", sheets).sequence_parallel
    assert stack("x", sheets, sequence_parallel=True).sequence_parallel


def test_parameters_are_whole_over_context_in_megatron() -> None:
    """Two bytes an element as gradients are reduced, three quarters of it from others; there and back where they are
    summed, and four as parameters are stored where ZeRO gathers those."""
    layout = Layout(context=4, data=2, zero=1)
    found = predicted("h100:8", layout, **MCORE)
    elements = num_parameters(parameter_groups(DENSE))
    assert line(found, "parameters").value == 4 * elements
    assert line(found, "optimizer state").value == pytest.approx(8 * elements / 8)
    assert line(found, "gradients over context").moved_bytes == 3 / 4 * 2 * elements
    assert line(found, "parameters over context").moved_bytes == 3 / 4 * 4 * elements
    plain = predicted("h100:8", replace(layout, zero=0), **MCORE)
    assert line(plain, "gradients over context").moved_bytes == 2 * 3 / 4 * 2 * elements
    names = {one.component for one in found.time}
    assert "parameters and gradients over context" not in names
    ours = predicted("h100:8", layout)
    assert "gradients over context" not in {one.component for one in ours.time}
    assert line(ours, "parameters").value < line(found, "parameters").value


def test_no_stage_keeps_more_microbatches_than_there_are() -> None:
    def kept(microbatches: float) -> float:
        columns = {"pipeline": 16.0, "microbatches": microbatches, "virtual_stages": 2.0}
        table = Table({name: np.array([value]) for name, value in columns.items()})
        return float(microbatches_in_flight("interleaved", mesh_columns()).over(table)[0])

    # 16 (1 + 15 / 32) = 23.5 of as many as there are (Korthikanti et al. 2022, appendix B).
    assert [kept(count) for count in (16, 20, 32)] == [16, 20, 23.5]


@pytest.mark.parametrize(
    ("cluster", "mesh", "tensor"),
    [
        # As many nodes as devices of `tensor`: those of a node come first all the same.
        ("h200:4x4", {"tensor": 4, "fsdp": 4}, (4, 1)),
        ("h100:8x4", {"tensor": 4, "fsdp": 8}, (4, 1)),
        ("h100:8x4", {"tensor": 8, "data": 4}, (8, 1)),
    ],
)
def test_inner_axes_stay_in_a_node(
    cluster: str, mesh: dict[str, int], tensor: tuple[int, ...]
) -> None:
    assert default_spread(parse_cluster(cluster), mesh)["tensor"] == tensor


def test_a_parallel_block_keeps_no_result_of_attention() -> None:
    """One array of the stream's width less: what a sequential block makes the MLP's input of."""
    plain, parallel = (
        line(predicted("v5p:2x2x1", Layout(fsdp=4, remat="dots"), shape=shape), "kept activations")
        for shape in (DENSE, replace(DENSE, parallel=True))
    )
    assert plain.value - parallel.value == DENSE.layers * TOKENS / 4 * 2 * DENSE.embed
    assert shape_of(a_case({"model": "maxtext-64b"}), FILE).parallel
    assert not shape_of(a_case({"model": "llama3-70b"}), FILE).parallel


def test_narrow_operands_are_kept_narrow() -> None:
    """Two normalized inputs and the last product's input are half as wide; attention's result is there twice."""
    wide, narrow = (
        line(predicted("h100:1", Layout(), kept_bytes=each, **MCORE), "kept activations").value
        for each in (0, 1)
    )
    saved = 2 * DENSE.embed + DENSE.mlp - DENSE.heads * DENSE.head_dim
    assert wide - narrow == DENSE.layers * TOKENS * saved
    assert stack("nemo", "nemo", compute_dtype="fp8").kept_bytes == 1
    assert stack("nemo", "nemo", compute_dtype="bf16").kept_bytes == 0


@pytest.mark.parametrize(
    ("experts", "given", "nodes", "hides"),
    [
        # Inside a node nothing is sent twice over the network.
        (8, {"pipe": 2}, 0, 0),
        (32, {}, 4, 0),
        (32, {"pipe": 2}, 4, 0.6),
    ],
)
def test_tokens_of_megatron_bridge_cross_to_a_node_once(
    experts: int, given: dict[str, int], nodes: int, hides: float
) -> None:
    """And beside the products of another microbatch, where the pipeline interleaves."""
    mesh = {"expert": experts, **given}
    told = stack("nemo", "nemo", hw="gpu.H100", n_chips=64, mesh=mesh, virtual_stages=2)
    assert (told.expert_nodes, told.overlap["tokens"]) == (nodes, hides)


def test_a_rack_with_its_hosts_memory_keeps_activations_there() -> None:
    given = {"n_chips": 64, "mesh": {"fsdp": 64}}
    assert stack("nemo", "nemo", hw="gpu.GB200_NVL72", **given).hosted > 0
    assert stack("nemo", "nemo", hw="gpu.B200", **given).hosted == 0
    assert stack("nemo", "nemo", hw="gpu.GB200_NVL72", n_chips=64, mesh={"data": 64}).hosted == 0


def test_integers_of_maxtext_are_scaled_by_a_pass_of_their_own() -> None:
    assert stack("tr", matmul_dtype="int8").narrowing == stack("tt").narrowing == 5
    assert stack("tr", matmul_dtype="fp8").narrowing == 3


def test_a_note_may_say_that_attention_is_not_fused() -> None:
    plain = a_case({"hw": "gpu.A100_80"}, id="pax-1", note="126M without flash attention")
    assert software_of(plain).stack.attention == "unfused"
    assert stack("pax", hw="gpu.A100_80").attention == "fused"


def test_a_choice_says_the_rows_of_its_microbatch() -> None:
    given = {
        "hw": "gpu.A100_80", "n_chips": 8, "model": "llama2-7b", "seq": 2048, "zero": 1,
        "global_batch_seqs": 64, "allowed_axes": ["data", "tensor"],
    }  # fmt: skip
    chosen = published_choice(
        a_case(given, {"mesh": {"data": 8}, "microbatch": 1}, source="arXiv:2311.05610"), FILE
    )
    mesh, rows = chosen["mesh"], chosen["microbatch"]
    assert isinstance(mesh, Chosen)
    assert isinstance(rows, Chosen)
    assert isinstance(mesh.value, dict)
    passes = 64 / (mesh.value.get("data", 1) * rows.value)
    assert passes == int(passes)


def test_weights_may_be_in_16_bits() -> None:
    told = stack("tr", params="bf16 weights (weight_dtype bfloat16)")
    assert (told.param_bytes, told.moments_bytes, told.gradient_bytes) == (2, 4, 2)
    # Products in 16 bits are no weights in 16 bits.
    assert stack("tr", params="fp32 master/opt, bf16 compute").param_bytes == 4


def test_torchtitan_compiled_its_loss_from_2025_on() -> None:
    of_2024 = stack("tt", "torchtitan benchmarks/llama3_h100_202412_torchtitan.md")
    of_2025 = stack("tt", "torchtitan benchmarks/llama3-8b_h200_202506_trainy-whitefiber.md")
    assert of_2025.logit_bytes < of_2024.logit_bytes
    eager = stack("tt", "torchtitan benchmarks/x_202506.md", compile=False)
    assert eager.logit_bytes == of_2024.logit_bytes


def test_experts_may_use_the_devices_of_tensor_parallelism() -> None:
    """2 x 8 x 32 are 512; of 256 devices experts have the 16 that the other axes leave."""
    given = {"hw": "gpu.H100", "n_chips": 256, "mesh": {"tensor": 2, "pipe": 8, "expert": 32}}
    mesh, _ = mesh_and_cluster(a_case(given))
    assert mesh == {"tensor": 2, "pipeline": 8, "expert": 16, "data": 1}


def test_the_best_of_several_layouts_is_the_one_with_most_tokens_a_second() -> None:
    """Where a microbatch is given for each replica, the layout with more replicas has more to do in a step."""
    given = {
        "hw": "gpu.H200", "n_chips": 4, "model": "llama3-8b", "seq": 4096, "microbatch": 2, "grad_accum": 1,
        "remat": "full", "options": ["FSDP4", "TP4"],
    }  # fmt: skip
    case = a_case(given, {"best": "FSDP4"})
    assert best_option(case, FILE)["best"] == "FSDP4"


def test_llama_3_has_one_layer_less_on_its_first_and_last_stage() -> None:
    """126 layers and two tables are 128 places: 16 stages of 2, 4 or 8 chunks."""
    workload = Workload(shape_of(a_case({"model": "llama3-405b"}), FILE), 32, 8192)
    found = layouts(a_case({}), LLAMA3, workload, {"tensor": 8, "pipeline": 16})
    assert {layout.virtual_stages for layout, _ in found} == {2, 4, 8}


def test_experts_that_a_token_does_not_go_to_are_not_counted() -> None:
    workload = Workload(ROUTED, 4, 2048)
    counted = counted_flops(a_case({}, flops_convention="6N+12LTD"), workload, "")
    active = counted_flops(
        a_case({}, flops_convention="active noncausal"), workload, "active+causal"
    )
    assert counted == active


def test_what_does_not_divide_is_padded_where_a_choice_asks_for_it() -> None:
    """PaLM (arXiv:2204.02311, section 4): 12 devices of `tensor` share one key head, 256,000 words, 2,048 tokens."""
    given = {
        "hw": "tpu.v4p", "n_chips": 6144, "pods": 2, "model": "palm-540b", "global_batch_seqs": 2048, "seq": 2048,
    }  # fmt: skip
    case = a_case(given, {"mesh": {"data": 2, "fsdp": 256, "tensor": 12}}, kind="choice")
    chosen = published_choice(replace(case, source="PaLM"), FILE)["mesh"]
    assert isinstance(chosen, Chosen)
    assert chosen.slower <= 1.1
