"""Rematerialization by name: what the backward pass of a block keeps and what it computes again."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxscale.config.plan import Remat
from jaxscale.models.context import BlockFunction
from jaxscale.models.traced_flops import inner_jaxprs
from jaxscale.parallel.errors import PlacementError

# Attention is the one product whose recomputation grows with the square of the sequence: `minimal` keeps its result and
# nothing else. `offload` moves what `full` keeps, the block's input, to the host.
_KEPT = ("attention_out",)
_OFFLOADED = ("block_in",)

_policies = jax.checkpoint_policies
_NAMED: dict[str, tuple[str, ...]] = {"minimal": _KEPT, "offload": _OFFLOADED}


def wrap_block(remat: Remat) -> Callable[[BlockFunction], BlockFunction]:
    """A transformation of a block function that applies the policy called `remat`.

    none keeps every intermediate; full keeps the block's input; dots keeps the results of weight products; minimal
    keeps the attention result; offload keeps the block's input in host memory. Raises PlacementError, when the block
    is traced, if a policy chooses by names that the block does not mark.
    """
    if remat == "none":
        return lambda block: block
    policy = {
        "full": _policies.nothing_saveable,
        "dots": _policies.dots_with_no_batch_dims_saveable,
        "minimal": _policies.save_only_these_names(*_KEPT),
        "offload": _policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(_OFFLOADED),
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[remat]

    def wrap(block: BlockFunction) -> BlockFunction:
        checkpointed = jax.checkpoint(block, policy=policy, prevent_cse=False)

        def checked(*arguments: Any) -> Any:
            _check_names(remat, block, arguments)
            return checkpointed(*arguments)

        return checked

    return wrap


def _check_names(remat: Remat, block: BlockFunction, arguments: tuple[Any, ...]) -> None:
    wanted = _NAMED.get(remat, ())
    if not wanted:
        return
    present = set(marked_names(jax.make_jaxpr(block)(*arguments).jaxpr))
    missing = [name for name in wanted if name not in present]
    if missing:
        raise PlacementError(
            f"plan.remat={remat} keeps {', '.join(missing)}, which the block does not mark with checkpoint_name "
            f"(it marks: {', '.join(sorted(present)) or 'nothing'}); use plan.remat=full or dots"
        )


def marked_names(jaxpr: Any) -> Iterator[str]:
    """Names given by `checkpoint_name` anywhere in a traced function."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name":
            yield equation.params["name"]
        for inner in inner_jaxprs(equation.params):
            yield from marked_names(inner)
