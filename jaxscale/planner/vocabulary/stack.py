"""What a software stack does on the devices: dtypes, attention, what it overlaps, what it keeps.

The planner plans for JAXSCALE. Other stacks are described to hold the same formulas against published runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Partition = Literal["shared", "equal", "slots"]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Arithmetic. efficiency: the one calibrated constant, a factor on the chip family's. matmul_dtype: of the
    products' operands, which decides their peak. attention: fused never writes scores to memory. causal_skip:
    fused attention leaves out what the mask hides. attention_speed: of a fused attention beside the chip
    family's (FlashAttention-2 and its like). grouped_speed: of products grouped by expert beside those of whole
    matrices. elementwise: passes over memory, as a multiple of those of fused loops. prunes: the compiler
    leaves out of a recomputation what nothing needs (the last product of the MLP, the product with values).
    host_seconds: time of a step that the devices wait for the host. layer_seconds: of a layer's forward pass, whatever
    its sizes (kernels too small to fill a device, and what starts them), twice that backward; the one calibrated
    constant of a stack that has it, whose products reach what the chip family's do. narrowing: bytes through memory
    to make an element of an operand 8 bits wide: read and written, and 2 more where the scale takes a pass of its
    own. narrows_weights: every pass does that to its weights; else they are kept narrow from one step to the next.

    Bytes an element: param_bytes as parameters are stored, compute_bytes of activations, gather_bytes of parameters on
    the way, gradient_bytes as gradients are kept, reduce_bytes as they are summed over devices, adding_bytes: through
    memory, to add a microbatch's gradient to the sum; moments_bytes of the optimizer's state, table_gradient_bytes of
    the gradient of the head's table while it is whole, logit_bytes of a logit and its gradient, held_logit_bytes of
    what of them exists at one time (0: all).

    Memory. two_moments: the peak is at the loss or in a layer (`costs/two_moments.py`), not the sum of what either has;
    query_block: queries whose scores of attention exist at one time and, where nothing is kept, are formed twice (0: a
    kernel's); score_bytes of each. adds_apart: gradients of a microbatch exist beside their sum. kept_streams: arrays
    of the residual stream's width that a layer without remat keeps at the least: inputs and results of both norms, and
    dropout masks. plain_streams, plain_mlp: what is kept besides, of either width, where nothing is rematerialized: the
    steps of norms and activations. keeps_latent: whether the `dots` policy keeps latent queries, keys and values, and
    the products behind them run again. kept_bytes: an element of the operands of products that it keeps, where those
    are narrower than activations (0: they are not). keeps_attention: whether the `dots` policy keeps what fused
    attention's backward pass needs. wide_products: how much wider than an activation the results are that the `dots`
    policy keeps (what integers add up to). hosted: the share of what layers keep that waits in the host's memory, sent
    and fetched beside compute. gathers: what is gathered at a time. regather: whether the backward pass gathers
    parameters again (ZeRO stage 3). loss_chunk: tokens whose logits exist at one time (0: all of a microbatch).
    overhead_bytes: of the framework, that no formula has (context, communication buffers, fragmentation).

    Collectives. gather_share: of what collectives reach of the links, in gathers and scatters of parameters; the one
    calibrated constant of a stack whose products are another's. overlap: the share of each that can hide behind
    compute, by axis (0, or none named: everything waits for it); `data` of gradients once a step, over whatever axis;
    `parameters` of what ZeRO 1 and 2 gather once a step; `keys` and `tokens` over context and expert.
    sequence_parallel: activations between split products are split over `tensor` too. scatters: a reduce-scatter is
    one, or is made of an all-reduce and a slice. summed_slices: by chip, how many devices the largest slice has over
    which gradients of parameters are scattered all the same; over more they are summed. windows: the fewest and the
    most devices of `fsdp`, where that is the only axis, over which the compiler cuts products of layers and what they
    gather or scatter into windows (0, 0: never). staged_moves: in a lockstep pipeline, how often a layer gathers the
    residual stream over `tensor`, both passes together, and how many sums the gradients of its two normalized inputs
    take.
    copies_table: over more devices of `fsdp` than this, where that is the only axis, the loss holds its gathered table
    in two layouts, and sums the gradient of most tables (0: never).
    expert_shares: parameters that are no experts are split over `expert`, too, and gathered; else each of its devices
    has them, and their gradients are summed once a step.
    context_shares: the same of all parameters over `context`.
    expert_nodes: to how many nodes a token goes at most, to each once, and on to its experts inside, where its experts
    are on fewer to those only (0: a copy for each expert). token_bytes: of an element of a token on its way to its
    experts and back, mean of both. looks_up: rows of the embedding go to the devices that asked for them, and its table
    is neither gathered nor its gradient summed over the axes that share its columns (`costs/tables.py`).
    splits_logits: the loss may split the vocabulary over `fsdp`.

    Pipelines. lockstep: all stages start a tick together, and hold arrays of the same shapes; else a stage starts when
    what it waits for is there. partition: how layers are dealt out. shared: in numbers that may differ, so that the
    head is load like any other; equal: as many to each stage, and the head on top of the last; slots: in equal numbers
    where those divide, else with each table in the place of a layer, else rounded up (DeepSpeed's `type:transformer`
    and `type:transformer|embedding`; BLOOM, tr11 chronicles, "Rebalancing layers"). splits_sends: each device of
    `tensor` sends its part of the residual stream, and they gather it at the other end (Narayanan et al. 2021, section
    4.1). keeps_sent: what a stage sent on stays until its backward pass.
    """

    name: str
    efficiency: float = 1.0
    narrowing: float = 3
    narrows_weights: bool = True
    matmul_dtype: str = "bfloat16"
    param_bytes: float = 4
    compute_bytes: float = 2
    gather_bytes: float = 2
    gradient_bytes: float = 4
    reduce_bytes: float = 4
    adding_bytes: float = 12
    moments_bytes: float = 8
    attention: Literal["fused", "unfused"] = "fused"
    causal_skip: bool = True
    attention_speed: float = 1.0
    grouped_speed: float = 1.0
    sequence_parallel: bool = True
    overlap: Mapping[str, float]
    gather_share: float = 1.0
    elementwise: float = 1.0
    regather: bool = True
    kept_streams: float = 4.0
    plain_streams: float = 0.0
    plain_mlp: float = 0.0
    adds_apart: bool = False
    gathers: Literal["matrix", "layer"] = "matrix"
    table_gradient_bytes: float = 4
    keeps_latent: bool = False
    kept_bytes: float = 0
    keeps_attention: bool = True
    wide_products: float = 1
    hosted: float = 0
    prunes: bool = False
    scatters: bool = True
    summed_slices: Mapping[str, int] = field(default_factory=dict)
    windows: tuple[int, int] = (0, 0)
    copies_table: int = 0
    staged_moves: tuple[float, int] = (6, 2)
    expert_shares: bool = True
    context_shares: bool = True
    expert_nodes: int = 0
    token_bytes: float = 2
    looks_up: bool = False
    splits_logits: bool = False
    lockstep: bool = False
    partition: Partition = "shared"
    splits_sends: bool = False
    keeps_sent: bool = False
    loss_chunk: int = 0
    logit_bytes: float = 8
    held_logit_bytes: float = 0
    two_moments: bool = False
    query_block: int = 0
    score_bytes: float = 0
    overhead_bytes: float = 0
    host_seconds: float = 0
    layer_seconds: float = 0
    source: str = ""

    @property
    def whole_axes(self) -> tuple[str, ...]:
        """Axes over which parameters are repeated that others would split over them."""
        shares = {"expert": self.expert_shares, "context": self.context_shares}
        return tuple(axis for axis, is_shared in shares.items() if not is_shared)
