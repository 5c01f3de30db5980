"""FLOPs of the matrix products that a device executes: what the compiler's program is held against.

Unlike model FLOPs they count recomputation, and attention by the blocks in which it is computed.
"""

from jaxscale.planner.model.flops import head_widths
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.vocabulary.layout import Layout, Remat
from jaxscale.planner.vocabulary.stack import Stack

# The trainer's blocked attention takes queries a block at a time (kernels/attention/xla.py).
_BLOCK, _MOST_BLOCKS = 128, 64


def executed_flops(workload: Workload, layout: Layout, stack: Stack) -> float:
    """Of a step, on one device of a dense model, every policy of the trainer; a pipeline's mean stage."""
    shape = workload.shape
    tokens = workload.tokens / (layout.data * layout.fsdp * layout.expert * layout.context)
    share = tokens / layout.tensor / layout.pipeline
    layers = shape.layers * (
        _weights(shape, layout.remat) + _attention(workload, layout.remat, stack)
    )
    return share * (layers + 6 * shape.embed * shape.vocab)


def _weights(shape: ModelShape, remat: Remat) -> float:
    """Per token and layer: two FLOPs a weight forward, four backward, and once more what is computed again."""
    attention = 2 * shape.embed * shape.head_dim * (shape.heads + shape.kv_heads)
    one = shape.embed * shape.mlp
    forward = 2 * (attention + shape.mlp_products * one)
    # The result of the last product of a layer is not needed again.
    again = forward - 2 * one if remat in {"minimal", "full", "offload"} else 0
    return 3 * forward + again


def _attention(workload: Workload, remat: Remat, stack: Stack) -> float:
    """Per token and layer: scores and values forward, five products backward. Where nothing is kept, values again, with
    the scores that the backward pass forms anyway; or scores of their own, where blocks are in turn.
    """
    shape = workload.shape
    score, value = head_widths(shape)
    product = 2 * shape.heads * block_keys(workload) * (score + value) / 2
    again = 2 if stack.query_block else 1
    products = 7 + (again if remat in {"full", "offload"} else 0)
    return products * product


def block_keys(workload: Workload) -> float:
    """Keys that the block of a query sees, mean over queries and layers."""
    shape, length = workload.shape, workload.sequence
    windows = [shape.windows[layer % len(shape.windows)] for layer in range(shape.layers)]
    return sum(_keys(length, window) for window in windows) / shape.layers


def _keys(length: int, window: int | None) -> float:
    block = max(_BLOCK, -(-length // _MOST_BLOCKS))
    total = 0
    for first in range(0, length, block):
        last = min(first + block, length)
        start = 0 if window is None else max(0, first - window + 1)
        total += (last - first) * (last - start)
    return total / length
