"""The software that published runs used: facts of its structure, with where they are said. Nothing is fitted here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jaxscale.planner.search.exhaustive import SCHEDULES
from jaxscale.planner.vocabulary.layout import Remat, Schedule
from jaxscale.planner.vocabulary.stack import Stack

Constant = Literal["products", "links", "layers"]
JAX_AXES = ("data", "fsdp", "expert", "context", "tensor")
MEGATRON_AXES = ("data", "expert", "context", "tensor", "pipeline")
_NOTHING_HIDES: Mapping[str, float] = dict.fromkeys((*JAX_AXES, "pipeline", "keys", "tokens"), 0.0)
_ALL_HIDES: Mapping[str, float] = dict.fromkeys(_NOTHING_HIDES, 1.0)
# NCCL's kernels take part of a GPU from the products that they run beside.
NCCL_HIDES = {**_ALL_HIDES, "fsdp": 0.6}
# Of the 3 to 6 GB that a PyTorch process keeps, what is left beside the CUDA context, which clusters keep back already.
_TORCH_OVERHEAD = 2.5e9


@dataclass(frozen=True)
class Software:
    """words: whose names for rematerialization it uses. axes: the kinds of parallelism it has.

    flops: the convention of its TFLOP/s, where a row names none (see `conventions`).
    remat, zero, schedule: what it does unless a row says otherwise (None: differs from run to run). whole_batch:
    without a pipeline and without a word about accumulation, a step is one pass. schedules: that it had to choose from.
    has_virtual: runs interleave, though rows do not say so.
    rule: how its authors say that they chose a layout. constant: what the one calibrated number of the stack is of:
    its products, its links (`Stack.gather_share`), or each layer (`Stack.layer_seconds`). kernels: the stack whose
    products it runs, where that is another. sends_once: of tokens that experts of several devices of another node want,
    one copy goes there, and where a pipeline interleaves it does so beside another microbatch's products.
    """

    stack: Stack
    words: str
    axes: tuple[str, ...]
    flops: str
    remat: Remat | None = None
    zero: int = 0
    schedule: Schedule = "1f1b"
    schedules: tuple[Schedule, ...] = SCHEDULES
    has_virtual: bool = False
    whole_batch: bool = True
    rule: str = ""
    constant: Constant = "products"
    kernels: str = ""
    sends_once: bool = False


MAXTEXT = Software(
    Stack(
        name="maxtext",
        # XLA runs gathers and scatters of parameters beside compute, those of tensor parallelism inside the products
        # (Wang et al., ASPLOS 2023, on TPU v4). Tokens wait for their experts.
        overlap={**_ALL_HIDES, "data": 0.8, "expert": 0.0, "tokens": 0.0},
        reduce_bytes=2,
        logit_bytes=2,
        # Its `minimal` saves products of weights, and attention runs again.
        keeps_attention=False,
        # On v5p its Mixtral 8x7B reaches 0.80 of its Llama 2 70B's MFU (its tiering guide: 52.6, 65.4 %); experts are
        # six tenths of the time, so grouped products run at about 0.7 of whole ones.
        grouped_speed=0.7,
        prunes=True,
        source="MaxText base.yml: fp32 weights and AdamW state, bf16 products; XLA's latency-hiding scheduler;"
        " 16-bit logits, whose gradient takes their place",
    ),
    words="jax",
    axes=JAX_AXES,
    flops="active+causal",
    rule="meshes set by hand",
)
LEVANTER = Software(
    Stack(
        name="levanter",
        overlap={**_ALL_HIDES, "tensor": 0.0},  # TPU v3: before what MaxText's has.
        attention="unfused",
        causal_skip=False,
        prunes=True,
        source="Levanter 1.0 release note: fp32 parameters, bf16 products, FSDP, gradient"
        " checkpointing of every block; no fused attention on TPU v3",
    ),
    words="jax",
    axes=("data", "fsdp", "tensor"),
    flops="6N+12LTD",
    remat="full",
)
# 2.5 TiB of state for 280e9 parameters: 16-bit weights and two 32-bit moments.
GOPHER = Software(
    Stack(
        name="gopher",
        overlap=_NOTHING_HIDES,
        attention="unfused",
        causal_skip=False,
        param_bytes=2,
        gradient_bytes=2,
        adding_bytes=6,
        reduce_bytes=2,
        source="Gopher (arXiv:2112.11446) section 3.3: JAX's pmap on TPU v3; data and model parallelism inside pods,"
        " GPipe's pipelines between them, partitioned optimizer state, rematerialization; no ZeRO stage 3. That nothing"
        " hides is assumed",
    ),
    words="jax",
    axes=("data", "tensor", "pipeline"),
    flops="6N+12LTD",
    remat="full",
    zero=1,
    schedule="gpipe",
    schedules=("gpipe",),
    whole_batch=False,
    rule="pipelines suit networks between pods, since they send little (arXiv:2112.11446, section 3.3)",
)
LLM_FOUNDRY = Software(
    Stack(
        name="llm-foundry",
        overlap=NCCL_HIDES,
        # Triton's kernel of FlashAttention 1: FlashAttention-2 (arXiv:2307.08691, figures 4, 5) is about 1.7 times as
        # fast.
        attention_speed=0.6,
        elementwise=2.0,
        gathers="layer",
        logit_bytes=4,
        overhead_bytes=_TORCH_OVERHEAD,
        source="llm-foundry benchmarking README: PyTorch FSDP, eager, flash attention, fp32 master and reduction"
        " (amp_bf16); its fused cross-entropy writes the gradient over 16-bit logits",
    ),
    words="torch",
    axes=("data", "fsdp"),
    flops="6N+12LTD",
)
TORCHTITAN = Software(
    Stack(
        name="torchtitan",
        # torchao's dynamic scaling reads a tensor for its largest value, and again to scale it (its own model of this
        # traffic: torchao/testing/training/roofline_utils.py, get_tensor_memory_traffic_bytes).
        narrowing=5,
        overlap={**NCCL_HIDES, "tensor": 0.0, "pipeline": 0.0},
        gathers="layer",
        # In 16 bits, in fp32, their log-softmax and its gradient: the loss is not compiled.
        logit_bytes=14,
        overhead_bytes=_TORCH_OVERHEAD,
        source="torchtitan benchmarks: FSDP2 with bf16 gathers and fp32 reduction, torch.compile, SDPA; tensor"
        " parallelism waits unless it is asynchronous",
    ),
    words="torch",
    axes=(*JAX_AXES, "pipeline"),
    flops="6N+12LTD",
)
MEGATRON = Software(
    Stack(
        name="megatron",
        overlap=_NOTHING_HIDES,
        attention="unfused",
        causal_skip=False,
        # 18 bytes a parameter; ZeRO 1 splits the last 12, master and moments.
        param_bytes=2,
        gradient_bytes=4,
        moments_bytes=12,
        sequence_parallel=False,
        elementwise=1.0,
        partition="equal",
        expert_shares=False,
        splits_sends=True,
        logit_bytes=10,
        overhead_bytes=_TORCH_OVERHEAD,
        source="Narayanan et al. 2021, Korthikanti et al. 2022: kernels fused by hand, scores in memory, no overlap;"
        " its distributed optimizer gathers parameters when all are updated (`gather_model_params`)",
    ),
    words="megatron",
    axes=MEGATRON_AXES,
    flops="96Bslh^2",
    remat="full",
    schedules=("1f1b", "interleaved"),  # In 2021 and 2022.
    rule="tensor parallelism up to a node before stages (Narayanan et al. 2021, takeaway 1)",
    whole_batch=False,
)
MEGATRON_DEEPSPEED = replace(
    MEGATRON,
    stack=replace(
        MEGATRON.stack,
        name="megatron-deepspeed",
        partition="slots",
        keeps_sent=True,
        gradient_bytes=2,
        adding_bytes=6,
        reduce_bytes=2,
        moments_bytes=16,
        overhead_bytes=_TORCH_OVERHEAD + 2e9,
        source="BLOOM, bigscience tr11: ZeRO 1 keeps fp32 gradients of its part beside master and moments, and two"
        " buckets of 5e8 16-bit elements; layers are dealt out as its chronicles say ('Rebalancing layers')."
        " DeepSpeed's pipeline sends parts of activations from the devices of `tensor` (runtime/pipe/engine.py,"
        " is_pipe_partitioned), and ZeRO 1 gathers parameters when all are updated (runtime/bf16_optimizer.py,"
        " update_lp_params)",
    ),
    schedules=("1f1b",),
    # Its constant is of no size: `docs/planner.md`, "BLOOM".
    constant="layers",
)
# The same structure elsewhere (GPT-NeoX, other runs of DeepSpeed's pipelines): nothing was calibrated.
DEEPSPEED_PIPELINES = replace(
    MEGATRON_DEEPSPEED,
    stack=replace(MEGATRON_DEEPSPEED.stack, name="deepspeed-pipelines"),
    constant="products",
)
# What Megatron was measured against: no model parallelism, 16-bit gathers and reductions beside compute.
DEEPSPEED = replace(
    MEGATRON,
    stack=replace(
        MEGATRON.stack,
        name="deepspeed",
        overlap={**_NOTHING_HIDES, "fsdp": NCCL_HIDES["fsdp"]},
        reduce_bytes=2,
        gradient_bytes=2,
        source="Narayanan et al. 2021, section 5.2: DeepSpeed ZeRO 3, integrated into Megatron: the same kernels",
    ),
    constant="links",
    kernels="megatron",
    axes=("data", "fsdp"),
)
MEGATRON_CORE = replace(
    MEGATRON,
    stack=replace(
        MEGATRON.stack,
        name="megatron-core",
        attention="fused",
        causal_skip=True,
        overlap={
            **_NOTHING_HIDES,
            "data": 1.0,
            "parameters": 1.0,
            "fsdp": NCCL_HIDES["fsdp"],
            "keys": 1.0,
            "tensor": 0.5,
            "pipeline": 1.0,
        },
        sequence_parallel=True,
        context_shares=False,
        gathers="layer",
        elementwise=1.0,
        # Products add to the fp32 sum as they write it: read and written once.
        adding_bytes=8,
        # Transformer Engine makes weights narrower in the first microbatch only (`is_first_microbatch`,
        # megatron/core/extensions/transformer_engine.py), or the optimizer does (`fp8_param`).
        narrows_weights=False,
        # Llama 3.1 405B's 126 layers and Qwen3 235B's 94 leave places for both tables
        # (`account_for_embedding_in_pipeline_split`); DeepSeek-V3's 61 are written out, fewer on the last stage.
        partition="slots",
        source="Megatron-Core: Transformer Engine, distributed optimizer, gradients, parameters, keys and values and"
        " tensor parallelism overlapped (its guides 'Communication overlap' and 'Megatron FSDP'): parameters are"
        " gathered behind the forward pass of the first microbatch, gradients scattered behind the backward pass of the"
        " last, of experts and all else (Megatron-Bridge, docs/performance-guide.md, 'Data-parallel communication of"
        " Distributed Optimizer'; on by default wherever there are replicas, training/comm_overlap.py, NeMo's"
        " 'Communication Overlap'; Megatron-LM, CHANGELOG of core 0.6); devices of context parallelism all have the"
        " parameters, and sum their gradients with data parallelism's; gradient_accumulation_fusion",
    ),
    has_virtual=True,
    flops="72BLsh^2",
    remat=None,
    zero=1,
)
NEMO = replace(
    MEGATRON_CORE,
    stack=replace(
        MEGATRON_CORE.stack,
        gradient_bytes=2,
        reduce_bytes=2,
        adding_bytes=4,
        logit_bytes=4,
        source=f"{MEGATRON_CORE.stack.source}; gradients are kept and summed in 16 bits, and the fused loss writes its"
        " gradient over 16-bit logits (NVIDIA-NeMo/Megatron-Bridge, perf_recipes/_common.py, _benchmark_common)",
    ),
    # DeepEP and HybridEP (`moe_flex_dispatcher_backend`), `overlap_moe_expert_parallel_comm`: perf_recipes/ of
    # DeepSeek-V3 and Qwen3, where experts are on several nodes.
    sends_once=True,
)
LLAMA3 = replace(
    MEGATRON_CORE,
    stack=replace(
        MEGATRON_CORE.stack,
        name="llama3",
        overlap={**_NOTHING_HIDES, "data": 1.0, "parameters": 1.0, "fsdp": 1.0, "pipeline": 1.0},
        regather=False,
        partition="slots",
        source="Llama 3 (arXiv:2407.21783) section 3.3.2: FSDP that keeps gathered parameters for the backward pass,"
        " fetches them ahead and reduces gradients asynchronously, an interleaved schedule, no activation"
        " checkpointing; one layer less on the first and on the last stage",
    ),
    axes=(*JAX_AXES, "pipeline"),
    flops="active+causal",
    remat="none",
    zero=2,
    schedule="interleaved",
)
# What its sheets do not say is from the paper: Megatron's split products without sequence parallelism (where a sheet
# does not name it), 1F1B, ZeRO 1. 16-bit gradients follow from its runs: 13B whole on each of 64 GPUs (26.7 GB at two
# bytes) fits 80 GB beside 14 GB of activations, and at four would not. PyTorch without a compiler: nothing fuses, and
# SwiGLU keeps silu(gate) beside gate, up and their product.
ALEPH_ALPHA = replace(
    MEGATRON_CORE,
    stack=replace(
        MEGATRON_CORE.stack,
        name="aleph-alpha",
        overlap=_NOTHING_HIDES,
        sequence_parallel=False,
        elementwise=LLM_FOUNDRY.stack.elementwise,
        plain_mlp=1.0,
        gradient_bytes=2,
        reduce_bytes=2,
        adding_bytes=6,
        source="Hagemann et al. 2023 (arXiv:2311.05610) and its sheets. That nothing hides is assumed",
    ),
    flops="6N+12LTD",
    remat="none",
    has_virtual=False,
    schedules=("1f1b",),
)
DEEPSEEK = Software(
    Stack(
        name="deepseek",
        overlap=_ALL_HIDES,
        matmul_dtype="float8_e4m3fn",
        param_bytes=2,
        expert_shares=False,
        expert_nodes=4,
        # 8 bits there, 16 back.
        token_bytes=1.5,
        keeps_latent=True,
        kept_bytes=1,
        overhead_bytes=_TORCH_OVERHEAD,
        source="DeepSeek-V3 (arXiv:2412.19437) sections 3.2 and 3.3: DualPipe hides all communication; float8 products,"
        " whose operands are kept in 8 bits; bf16 moments beside a fp32 master; norms and up-projections are computed"
        " again; ZeRO 1; a token goes to 4 nodes at most, to each once, over InfiniBand, and on over NVLink; tokens are"
        " sent in 8 bits and results in 16",
    ),
    words="megatron",
    axes=MEGATRON_AXES,
    flops="active+causal",
    remat="dots",
    zero=1,
    whole_batch=False,
    rule="no tensor parallelism, 64 experts' devices over 8 nodes (arXiv:2412.19437, section 3.2)",
)

BY_PREFIX: Mapping[str, Software] = {
    "mt": MAXTEXT,
    "tr": MAXTEXT,
    "levanter": LEVANTER,
    "llf": LLM_FOUNDRY,
    "tt": TORCHTITAN,
    "sc21": MEGATRON,
    "kor": MEGATRON,
    "mtnlg": MEGATRON_DEEPSPEED,
    "megatron2020": MEGATRON,
    "meg": MEGATRON,
    "bloom": MEGATRON_DEEPSPEED,
    "gptneox": DEEPSPEED_PIPELINES,
    "mcore": MEGATRON_CORE,
    "dsv3": DEEPSEEK,
}
# Words of a prefix and a source, where the prefix is new.
BY_SOURCE = (
    (r"gopher|rae et al", GOPHER),
    (r"maxtext|tpu-recipes|palm|t5x|pax", MAXTEXT),
    (r"levanter", LEVANTER),
    (r"llm-foundry|mosaic", LLM_FOUNDRY),
    (r"torchtitan", TORCHTITAN),
    (r"bigscience|mt-nlg|turing", MEGATRON_DEEPSPEED),
    (r"neox|deepspeed", DEEPSPEED_PIPELINES),
    (r"deepseek", DEEPSEEK),
    (r"aleph.?alpha|2311\.05610", ALEPH_ALPHA),
    (r"llama.?3 paper|2407.21783|herd of models", LLAMA3),
    # NeMo AutoModel is PyTorch's FSDP2, and so is what names nothing of these.
    (r"megatron.?bridge|nemo(?!\W*automodel)", NEMO),
    (r"megatron-core|mcore", MEGATRON_CORE),
    (r"megatron|narayanan|korthikanti|opt-175", MEGATRON),
)
