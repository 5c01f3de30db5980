"""What each rematerialization policy computes again, and what it keeps."""

from jaxscale.planner.model.flops import head_widths
from jaxscale.planner.model.shape import LatentAttention, ModelShape
from jaxscale.planner.model.sizes import Sizes
from jaxscale.planner.vocabulary.formula import Formula, Number
from jaxscale.planner.vocabulary.layout import Remat
from jaxscale.planner.vocabulary.stack import Stack

# Components of a layer that run forward once more in the backward pass, by policy.
_KEPT: dict[Remat, tuple[str, ...]] = {
    "dots": (
        "attention projections",
        "attention",
        "mlp",
        "experts",
        "shared experts",
        "mlp of dense layers",
    ),
    "projections": ("attention projections", "attention"),
    "minimal": ("attention",),
    "full": (),
    "offload": (),
}


# Of `alternate`, in the order in which a layer multiplies: q and v are kept, k and the result are not; of gate, up and
# down the second is not.
_ALTERNATE = {"attention projections": 1 / 2, "attention": 0.0, "elementwise and norms": 1.0}
_OF_AN_MLP = 1 / 3


def recomputed_share(component: str, remat: Remat, stack: Stack) -> float:
    """The part of a component that runs forward once more."""
    if remat == "alternate":
        return _ALTERNATE.get(component, _OF_AN_MLP)
    return float(is_recomputed(component, remat, stack))


def is_recomputed(component: str, remat: Remat, stack: Stack) -> bool:
    if remat == "none":
        return False
    if remat in {"dots", "projections"} and component == "attention":
        return not stack.keeps_attention
    if remat == "attention":
        return component == "attention"
    return component not in _KEPT[remat]


def recomputes_products(remat: Remat) -> bool:
    """Whether the split products of a layer, and so their collectives, run again."""
    return remat in {"minimal", "full", "offload"}


def kept_bytes(shape: ModelShape, sizes: Sizes, stack: Stack, remat: Remat) -> Formula:
    """Bytes of one layer that wait for the backward pass, for the tokens of a microbatch on a device.

    With a fused attention and 16-bit activations, a plain layer keeps 34 s b h / t in Korthikanti et al. (2022,
    equation 4, without dropout masks and with both norms' inputs); scores add 5 a s^2 b / t where attention is not
    fused (equation 1).
    """
    stream = Number(shape.embed * stack.compute_bytes, "B of embed") * sizes.share
    split = sizes.mesh.tensor
    attention = Number(attention_bytes(shape, stack), "B of attention") / split
    inner = Number(mlp_width(shape) * stack.compute_bytes, "B of mlp") / split
    tokens = sizes.tokens
    if remat in {"full", "offload"}:
        return tokens * stream
    result = shape.heads * head_widths(shape)[1] * stack.compute_bytes + 4 * shape.heads
    if remat == "minimal":
        return tokens * (stream + Number(result, "B of attention") / split)
    if remat in {"dots", "projections", "alternate"}:
        if not stack.keeps_attention:
            attention = attention - Number(result, "B computed again") / split
        results = {"dots": shape.mlp_products - 1, "projections": 0, "alternate": 1}[remat]
        if remat == "dots" and stack.keeps_latent and shape.latent is not None:
            attention = _latent_bytes(shape, shape.latent, stack) + Number(result, "B") / split
        if remat == "dots" and stack.kept_bytes:
            inner = inner * Number(stack.kept_bytes / stack.compute_bytes, "narrower")
        kept = attention + results * inner
        if not shape.parallel:
            kept = stream + kept  # What attention gave, which the MLP's input is made of.
        if remat == "dots" and stack.wide_products != 1:
            kept = kept * Number(stack.wide_products, "wider")
        return tokens * (stream + kept)
    plain = layer_bytes(shape, sizes, stack) + tokens * (
        stack.plain_streams * stream + stack.plain_mlp * inner
    )
    if stack.kept_bytes:
        # Both normalized inputs and the input of the last product; the result of attention is kept in both widths.
        narrow = stack.kept_bytes / stack.compute_bytes
        operands = 2 * stream + inner
        copy = Number(shape.heads * head_widths(shape)[1] * stack.kept_bytes, "B narrow") / split
        plain = plain - tokens * ((1 - narrow) * operands - copy)
    return plain if remat == "attention" else plain + score_bytes(shape, sizes, stack)


def score_bytes(shape: ModelShape, sizes: Sizes, stack: Stack) -> Formula:
    """Of a layer whose attention is not fused: scores, their softmax and dropout (Korthikanti et al., equation 1)."""
    if stack.attention == "fused":
        return Number(0)
    scores = 5 * Number(shape.heads, "heads") * sizes.all_keys / sizes.mesh.tensor
    return sizes.tokens * scores


def layer_bytes(shape: ModelShape, sizes: Sizes, stack: Stack) -> Formula:
    """Bytes of the arrays that the backward pass of a layer works on: what it keeps at the least, or computes again."""
    stream = Number(shape.embed * stack.compute_bytes, "B of embed") * sizes.share
    split = sizes.mesh.tensor
    attention = Number(attention_bytes(shape, stack), "B of attention") / split
    inner = Number(mlp_width(shape) * stack.compute_bytes, "B of mlp") / split
    # One norm has one input and one result less.
    streams = stack.kept_streams - 2 * shape.parallel
    arrays = streams * stream + attention + shape.mlp_products * inner
    return sizes.tokens * arrays


def attention_bytes(shape: ModelShape, stack: Stack) -> float:
    """Queries, keys, values and the result, and the log-sum-exp of each row in fp32."""
    if shape.latent is not None:
        latent = shape.latent
        key_dim = latent.nope_dim + latent.rope_dim
        width = shape.heads * (2 * key_dim + 2 * latent.value_dim)
    else:
        width = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return width * stack.compute_bytes + 4 * shape.heads


def _latent_bytes(shape: ModelShape, latent: LatentAttention, stack: Stack) -> Formula:
    """Of a token: queries, keys and values before the products up. Every device of `tensor` has them."""
    queries = latent.query_rank or shape.heads * (latent.nope_dim + latent.rope_dim)
    width = queries + latent.kv_rank + latent.rope_dim
    return Number(width * (stack.kept_bytes or stack.compute_bytes), "B latent")


def mlp_width(shape: ModelShape) -> int:
    if shape.experts is None:
        return shape.mlp
    return (shape.experts.per_token + shape.experts.shared) * shape.experts.mlp
