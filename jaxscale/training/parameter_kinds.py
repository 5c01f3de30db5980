"""What a parameter is to an optimizer, read off its logical axes: a stack of matrices or vectors.

Leading `layers` and `experts` dims are a stack: an optimizer treats each layer's and each expert's
array by itself. `heads` (or `kv_heads`) followed by `head_dim` is one feature dim in two pieces.
What is left after that decides: a matrix has two feature dims or more, anything else is a vector.

    layers/attention/query   layers | embed | heads head_dim   matrix, embed x (heads head_dim)
    layers/attention/output  layers | heads head_dim | embed   matrix, (heads head_dim) x embed
    layers/attention/query_bias     layers | heads head_dim    vector
    layers/mlp/gate          layers experts | embed | mlp      matrix
    layers/router/kernel     layers | embed | experts          matrix: experts come out of it
"""

import math
import re

from jaxscale.models.description import Description, ParamSpec

Group = tuple[int, ...]

_STACKS = ("layers", "experts")
_BIAS = re.compile(r"(.*_)?bias")
# Muon is for hidden matrices: rows of these are lookups or classes (Jordan et al. 2024).
_END = re.compile(r".*embedding.*|table|head|lm_head")


def num_stack_dims(spec: ParamSpec) -> int:
    """Leading dims that count independent arrays. The `experts` of a router's bias are features."""
    count = 0
    for expected in _STACKS:
        if count < len(spec.axes) and spec.axes[count] == expected:
            count += 1
    router_like = count == len(spec.axes) and spec.axes[-1:] == ("experts",)
    return count - 1 if router_like else count


def feature_groups(spec: ParamSpec) -> tuple[Group, ...]:
    """Dims after the stack, by number; those that form one feature dim together share a group."""
    groups: list[Group] = []
    for dim in range(num_stack_dims(spec), len(spec.axes)):
        if groups and _is_head_dim(spec, dim):
            groups[-1] = (*groups[-1], dim)
        else:
            groups.append((dim,))
    return tuple(groups)


def is_matrix(path: str, spec: ParamSpec) -> bool:
    """Whether the parameter has input and output dims: weights, embeddings, routers, convolutions.

    Not so: norms (an axis `norm`), biases (the last name is `bias` or ends in `_bias`), vectors
    and scalars.
    """
    named_bias = _BIAS.fullmatch(path.rsplit("/", maxsplit=1)[-1]) is not None
    return not named_bias and "norm" not in spec.axes and len(feature_groups(spec)) >= 2


def hidden_matrix_shape(path: str, spec: ParamSpec) -> tuple[int, ...] | None:
    """(stack..., rows, columns) of a matrix inside the network; None for anything else.

    None too for the network's ends (an axis `vocab`; a name that contains `embedding`, or is
    `table`, `head` or `lm_head`) and for matrices with more than two feature dims (a convolution,
    fused projections): which of those are rows is not known, and guessing would orthogonalize the
    wrong thing.
    """
    groups = feature_groups(spec)
    at_end = "vocab" in spec.axes or any(_END.fullmatch(part) for part in path.split("/"))
    if at_end or len(groups) != 2 or not is_matrix(path, spec):
        return None
    sides = (math.prod(spec.shape[dim] for dim in group) for group in groups)
    return (*spec.shape[: num_stack_dims(spec)], *sides)


def decay_mask(description: Description) -> dict[str, bool]:
    """Which parameters weight decay shrinks: every matrix, embeddings included."""
    return {path: is_matrix(path, spec) for path, spec in description.items()}


def _is_head_dim(spec: ParamSpec, dim: int) -> bool:
    before = spec.axes[dim - 1] if dim > 0 else None
    return spec.axes[dim] == "head_dim" and before is not None and before.endswith("heads")
