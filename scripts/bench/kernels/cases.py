"""What is timed: for each op its forms, their operands (random normal numbers), and its floating-point operations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import Form

from jaxscale.errors import UserError
from jaxscale.kernels.attention.api import attention
from jaxscale.kernels.fp8_matmul.api import fp8_matmul
from jaxscale.kernels.linear_cross_entropy.api import LossOptions, Where, linear_cross_entropy
from jaxscale.kernels.linear_cross_entropy.reference import reference_loss
from jaxscale.kernels.ragged_matmul.api import ragged_matmul


@dataclass(frozen=True)
class Case:
    """flops: of the forward pass and the gradients. baseline: the form that ratios are to."""

    title: str
    forms: dict[str, Form]
    arguments: tuple[Any, ...]
    flops: float
    baseline: str


def willing(forms: dict[str, Form], arguments: tuple[Any, ...]) -> dict[str, Form]:
    """Those that serve the call on this device; the others print their reason."""
    kept = {}
    for name, form in forms.items():
        try:
            jax.eval_shape(form, *arguments)
        except UserError as error:
            print(f"  {name}: {error}")
        else:
            kept[name] = form
    return kept


def ragged(tokens: int, inward: int, outward: int, groups: int, dtype: Any) -> Case:
    """Rows of groups of uneven size (Dirichlet, concentration 2), forward and both gradients."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(groups, 2.0))
    sizes = jnp.asarray(rng.multinomial(tokens, shares), jnp.int32)
    x, weight = _normal((tokens, inward), dtype), _normal((groups, inward, outward), dtype)
    to_out = _normal((tokens, outward), dtype)

    def gradients(product: Callable[..., jax.Array], *arguments: jax.Array) -> Any:
        x, weight, sizes, to_out = arguments
        out, pull = jax.vjp(lambda x, weight: product(x, weight, sizes), x, weight)
        return out, *pull(to_out)

    forms = {
        "masked dense": partial(gradients, _masked),
        "lax.ragged_dot": partial(gradients, jax.lax.ragged_dot),
        "xla": partial(gradients, partial(ragged_matmul, kernels="xla", local=True)),
        "pallas": partial(gradients, partial(ragged_matmul, kernels="pallas", local=True)),
    }
    title = f"ragged_matmul {tokens} x {inward} x {outward}, {groups} groups, {dtype}"
    arguments = (x, weight, sizes, to_out)
    return Case(title, forms, arguments, 6 * tokens * inward * outward, "lax.ragged_dot")


def _masked(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """The plain formulation: every row with every group's matrix, one group after another."""
    ends, rows = jnp.cumsum(sizes), jnp.arange(x.shape[0])[:, None]
    wide = jnp.float32

    def add(total: jax.Array, group: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        matrix, end, size = group
        mine = jnp.where((rows < end) & (rows >= end - size), x, 0)
        return total + jnp.dot(mine, matrix, preferred_element_type=wide), None

    zeros = jnp.zeros((x.shape[0], weight.shape[2]), wide)
    return jax.lax.scan(add, zeros, (weight, ends, sizes))[0].astype(x.dtype)


def loss(tokens: int, embed: int, vocab: int, chunk: int, dtype: Any) -> Case:
    """Next-token loss with both gradients."""
    hidden, table = _normal((tokens, embed), dtype), _normal((vocab, embed), dtype, 0.02)
    targets = jnp.asarray(np.random.default_rng(1).integers(0, vocab, tokens), jnp.int32)

    def chunked(kernels: str, hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
        where = Where(kernels=kernels)
        return linear_cross_entropy(hidden, table, targets, LossOptions(), chunk, where).loss_sum

    def plain(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
        return reference_loss(hidden, table, targets, LossOptions()).loss_sum

    forms: dict[str, Form] = {
        "all logits": jax.value_and_grad(plain, (0, 1)),
        "xla": jax.value_and_grad(partial(chunked, "xla"), (0, 1)),
        "pallas": jax.value_and_grad(partial(chunked, "pallas"), (0, 1)),
    }
    title = f"linear_cross_entropy {tokens} x {embed} x {vocab}, chunks of {chunk}, {dtype}"
    return Case(title, forms, (hidden, table, targets), 6 * tokens * embed * vocab, "all logits")


def self_attention(
    rows: int, length: int, heads: int, kv_heads: int, head_dim: int, dtype: Any
) -> Case:
    """Causal, forward and gradients: 2 products forward and 5 backward of half the square."""
    query = _normal((rows, length, heads, head_dim), dtype)
    key, value = (_normal((rows, length, kv_heads, head_dim), dtype) for _ in range(2))
    scale = head_dim**-0.5

    def total(name: str, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        out = attention(query, key, value, scale=scale, implementation=name, local=True)
        return jnp.square(out.astype(jnp.float32)).sum()

    names = ("reference", "xla", "cudnn", "pallas")
    forms: dict[str, Form] = {
        name: jax.value_and_grad(partial(total, name), (0, 1, 2)) for name in names
    }
    title = f"attention {rows} x {length}, {heads}/{kv_heads} heads of {head_dim}, {dtype}"
    flops = 7 * rows * heads * length**2 * head_dim
    return Case(title, forms, (query, key, value), flops, "xla")


def fp8(rows: int, inward: int, outward: int, dtype: Any) -> Case:
    """A product with both gradients, in bfloat16 and in fp8 with a scale a tensor and a row."""
    x, weight = _normal((rows, inward), dtype), _normal((inward, outward), dtype, 0.02)
    to_out = _normal((rows, outward), dtype)

    def gradients(product: Callable[..., jax.Array], *arguments: jax.Array) -> Any:
        out, pull = jax.vjp(product, *arguments[:2])
        return out, *pull(arguments[2])

    forms: dict[str, Form] = {
        "bfloat16": partial(gradients, jnp.dot),
        "fp8, tensor": partial(gradients, partial(fp8_matmul, scaling="tensor")),
        "fp8, row": partial(gradients, partial(fp8_matmul, scaling="row")),
    }
    title = f"fp8_matmul {rows} x {inward} x {outward}"
    return Case(title, forms, (x, weight, to_out), 6 * rows * inward * outward, "bfloat16")


def norm(rows: int, inward: int, outward: int, dtype: Any) -> Case:
    """A product with and without an RMS norm before it, with gradients: all that a fused norm could save."""
    x, weight = _normal((rows, inward), dtype), _normal((inward, outward), dtype, 0.02)
    scale, to_out = _normal((inward,), dtype), _normal((rows, outward), dtype)

    def normed(x: jax.Array, weight: jax.Array, scale: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        size = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + 1e-6)
        return jnp.dot((wide * size * scale).astype(x.dtype), weight)

    def alone(x: jax.Array, weight: jax.Array, _scale: jax.Array) -> jax.Array:
        return jnp.dot(x, weight)

    def gradients(product: Callable[..., jax.Array], *arguments: jax.Array) -> Any:
        out, pull = jax.vjp(product, *arguments[:3])
        return out, *pull(arguments[3])

    forms: dict[str, Form] = {
        "product": partial(gradients, alone),
        "norm, product": partial(gradients, normed),
    }
    title = f"rms_norm and product {rows} x {inward} x {outward}, {dtype}"
    return Case(title, forms, (x, weight, scale, to_out), 6 * rows * inward * outward, "product")


def _normal(shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> jax.Array:
    """Zeros run faster than numbers on GPUs: never time on them."""
    key = jax.random.key(sum(shape))
    return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
