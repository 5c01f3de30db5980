"""Rematerialization by name: what the backward pass of a block keeps and what it computes again."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxscale.config.plan import Remat
from jaxscale.kernels.attention.residuals import is_residual
from jaxscale.kernels.residuals import is_product
from jaxscale.models.context import BlockFunction
from jaxscale.models.traced_flops import inner_jaxprs
from jaxscale.parallel.errors import PlacementError

_policies = jax.checkpoint_policies
Policy = Callable[..., Any]


def _is_block_input(primitive: Any, *_: Any, **parameters: Any) -> bool:
    return bool(primitive.name == "name" and parameters["name"] == "block_in")


# Attention is the one product whose recomputation grows with the square of the sequence: `dots` and `minimal` keep what
# its backward pass needs. `offload` moves what `full` keeps, the block's input, to the host.
_POLICIES: dict[Remat, Policy] = {
    "full": _policies.nothing_saveable,
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable,
        _policies.save_from_both_policies(is_product, is_residual),
    ),
    "minimal": is_residual,
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block_in"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
# What a block must have for a policy to mean anything: a predicate, and words for it.
_NEEDS: dict[Remat, tuple[Policy, str]] = {
    "minimal": (is_residual, "attention through `jaxscale.kernels.attention`"),
    "offload": (_is_block_input, "an input marked `checkpoint_name(x, 'block_in')`"),
}


def wrap_block(remat: Remat) -> Callable[[BlockFunction], BlockFunction]:
    """A transformation of a block function that applies the policy called `remat`.

    none keeps every intermediate; full keeps the block's input; dots keeps the results of weight products and of
    attention; minimal those of attention; offload keeps the block's input in host memory. Raises PlacementError, when
    the block is traced, for a policy that would find nothing to keep.
    """
    if remat == "none":
        return lambda block: block

    def wrap(block: BlockFunction) -> BlockFunction:
        checkpointed = jax.checkpoint(block, policy=_POLICIES[remat], prevent_cse=False)

        def checked(*arguments: Any) -> Any:
            _check_needs(remat, block, arguments)
            return checkpointed(*arguments)

        return checked

    return wrap


def _check_needs(remat: Remat, block: BlockFunction, arguments: tuple[Any, ...]) -> None:
    if remat not in _NEEDS:
        return
    wanted, words = _NEEDS[remat]
    traced = jax.make_jaxpr(block)(*arguments).jaxpr
    if not any(wanted(e.primitive, **e.params) for e in equations(traced)):
        raise PlacementError(
            f"plan.remat={remat} needs {words}, which this block has not; use plan.remat=full or dots"
        )


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a traced function, those of inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation.params):
            yield from equations(inner)
