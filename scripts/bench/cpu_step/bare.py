"""A training step written by hand on our kernels: what a framework around them can hope for."""

import jax
import jax.numpy as jnp
import optax
import shape
from jaxtyping import Array, Float, Int

from jaxscale.kernels.attention.api import attention
from jaxscale.kernels.linear_cross_entropy.api import LossOptions, linear_cross_entropy
from jaxscale.kernels.matmul.xla import linear

Weights = dict[str, jax.Array]
Stream = Float[Array, "batch sequence embed"]


def _layer_weights(key: jax.Array) -> Weights:
    width, mlp = shape.WIDTH, shape.MLP
    heads, kv_heads = (shape.HEADS, shape.HEAD_DIM), (shape.KV_HEADS, shape.HEAD_DIM)
    shapes = {
        "query": (width, *heads),
        "key": (width, *kv_heads),
        "value": (width, *kv_heads),
        "output": (*heads, width),
        "gate": (width, mlp),
        "up": (width, mlp),
        "down": (mlp, width),
    }
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    weights = {n: shape.INIT_SCALE * jax.random.normal(keys[n], s) for n, s in shapes.items()}
    return weights | {"attention_norm": jnp.ones(width), "mlp_norm": jnp.ones(width)}


def initial_weights() -> dict[str, object]:
    keys = jax.random.split(jax.random.key(0), shape.LAYERS + 2)
    table = (shape.VOCAB, shape.WIDTH)
    return {
        "embedding": shape.INIT_SCALE * jax.random.normal(keys[0], table),
        "head": shape.INIT_SCALE * jax.random.normal(keys[1], table),
        "norm": jnp.ones(shape.WIDTH),
        "layers": [_layer_weights(key) for key in keys[2:]],
    }


def normalize(x: Stream, scale: jax.Array) -> Stream:
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + shape.NORM_EPSILON)).astype(x.dtype) * scale


def rotate(x: Float[Array, "batch sequence heads head_dim"]) -> jax.Array:
    half = shape.HEAD_DIM // 2
    angles = jnp.arange(x.shape[1])[:, None] * shape.ROPE_BASE ** (-jnp.arange(half) / half)
    # Not by halves joined again: concatenation costs 6 times the roll on CPU.
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    wide = x.astype(jnp.float32)
    turned = wide * jnp.concatenate([cos, cos], axis=-1)
    turned += jnp.roll(wide, half, axis=-1) * jnp.concatenate([-sin, sin], axis=-1)
    return turned.astype(x.dtype)


def block(x: Stream, weights: Weights) -> Stream:
    h = normalize(x, weights["attention_norm"])
    query, key, value = (linear(h, weights[n], local=True) for n in ("query", "key", "value"))
    scale = shape.HEAD_DIM**-0.5
    mixed = attention(rotate(query), rotate(key), value, scale=scale, local=True)
    x = x + linear(mixed, weights["output"], num_inward=2, local=True)
    h = normalize(x, weights["mlp_norm"])
    gate, up = linear(h, weights["gate"], local=True), linear(h, weights["up"], local=True)
    return x + linear(jax.nn.silu(gate) * up, weights["down"], local=True)


def loss(weights: dict[str, object], tokens: Int[Array, "batch length"], dtype: str) -> jax.Array:
    weights = jax.tree.map(lambda w: w.astype(dtype), weights)
    x = weights["embedding"][tokens[:, :-1]]
    for layer in weights["layers"]:
        x = block(x, layer)
    x = normalize(x, weights["norm"])
    sums = linear_cross_entropy(x, weights["head"], tokens[:, 1:], LossOptions(), 512)
    return sums.loss_sum / sums.weight


def run(chosen: shape.Options) -> None:
    beta1, beta2 = shape.BETAS
    optimizer = optax.adamw(
        shape.LEARNING_RATE, b1=beta1, b2=beta2, weight_decay=shape.WEIGHT_DECAY
    )

    def train(state: tuple[object, object], tokens: jax.Array) -> tuple[object, jax.Array]:
        weights, moments = state
        value, gradients = jax.value_and_grad(loss)(weights, tokens, chosen.dtype)
        updates, moments = optimizer.update(gradients, moments, weights)
        return (optax.apply_updates(weights, updates), moments), value

    compiled = jax.jit(train, donate_argnums=0)
    weights = initial_weights()
    state = weights, optimizer.init(weights)
    size = shape.BATCH, shape.SEQUENCE + 1
    tokens = jax.random.randint(jax.random.key(1), size, 0, shape.VOCAB)

    def step() -> float:
        nonlocal state
        state, value = jax.block_until_ready(compiled(state, tokens))
        return float(value)

    shape.measure(step, chosen)
