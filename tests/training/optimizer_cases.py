"""Small descriptions written by hand, and ways to run an optimizer on them."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxscale.config.optimizer_section import OptimizerSection
from jaxscale.models.description import Description, Params, ParamSpec
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import Schedule

STEPS = 20
NAMES = ("adamw", "adafactor", "lion", "muon")


def spec(shape: tuple[int, ...], *axes: str | None) -> ParamSpec:
    return ParamSpec(shape, np.dtype("float32"), axes)


# Adafactor factors from 128 on: `gate`, `query` and `output`, and nothing else.
LLAMA: Description = {
    "embedding/table": spec((20, 128), "vocab", "embed"),
    "layers/attention_norm/scale": spec((2, 128), "layers", "norm"),
    "layers/attention/query": spec((2, 128, 2, 130), "layers", "embed", "heads", "head_dim"),
    "layers/attention/key": spec((2, 128, 1, 8), "layers", "embed", "kv_heads", "head_dim"),
    "layers/attention/query_norm/scale": spec((2, 8), "layers", "head_dim"),
    "layers/attention/output": spec((2, 2, 130, 128), "layers", "heads", "head_dim", "embed"),
    "layers/mlp/gate": spec((2, 128, 144), "layers", "embed", "mlp"),
    "layers/mlp/down": spec((2, 16, 128), "layers", "mlp", "embed"),
    "final_norm/scale": spec((128,), "norm"),
    "head/kernel": spec((128, 20), "embed", "vocab"),
}
GPT2: Description = {
    "embedding/table": spec((20, 16), "vocab", "embed"),
    "position_embedding/table": spec((10, 16), None, "embed"),
    "layers/attention_norm/scale": spec((2, 16), "layers", "norm"),
    "layers/attention_norm/bias": spec((2, 16), "layers", "norm"),
    "layers/attention/query": spec((2, 16, 2, 8), "layers", "embed", "heads", "head_dim"),
    "layers/attention/query_bias": spec((2, 2, 8), "layers", "heads", "head_dim"),
    "layers/attention/output": spec((2, 2, 8, 16), "layers", "heads", "head_dim", "embed"),
    "layers/attention/output_bias": spec((2, 16), "layers", "norm"),
    "layers/mlp/up": spec((2, 16, 64), "layers", "embed", "mlp"),
    "layers/mlp/up_bias": spec((2, 64), "layers", "mlp"),
    "final_norm/bias": spec((16,), "norm"),
}
EXPERTS: Description = {
    "layers/router/kernel": spec((2, 16, 4), "layers", "embed", "experts"),
    "layers/router/bias": spec((2, 4), "layers", "experts"),
    "layers/router/load": spec((2, 4), "layers", "experts"),
    "layers/mlp/gate": spec((2, 4, 16, 8), "layers", "experts", "embed", "mlp"),
    "layers/mlp/gate_bias": spec((2, 4, 8), "layers", "experts", "mlp"),
    "layers/mlp/scale": spec((2, 4, 8), "layers", "experts", "mlp"),
}
# So many layers that a stack taken for one array would be factored over them.
DEEP: Description = {"layers/gate": spec((130, 128, 4), "layers", "embed", "mlp")}
# A user's own module: names and axes that nobody foresaw.
OWN: Description = {
    "encoder/conv": spec((3, 3, 4, 8), None, None, "channels_in", "channels_out"),
    "encoder/dense": spec((8, 6), None, None),
    "encoder/gain": spec((8,), None),
    "encoder/fused": spec((8, 3, 2, 4), "embed", None, "heads", "head_dim"),
    "encoder/temperature": spec(()),
    "decoder/words": spec((6, 20), "embed", "vocab"),
    "classifier/head/kernel": spec((6, 5), "embed", "classes"),
}


def normal(description: Description, seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Normal values, of another scale in each layer: mixing layers shows."""
    random = np.random.default_rng(seed)
    values = {}
    for path, entry in description.items():
        value = random.standard_normal(entry.shape)
        if entry.axes[:1] == ("layers",):
            value *= 4.0 ** np.arange(entry.shape[0]).reshape(-1, *(1,) * (value.ndim - 1))
        values[path] = value.astype(dtype)
    return values


def optimizer_for(
    section: OptimizerSection, description: Description
) -> optax.GradientTransformation:
    return make_optimizer(section, rate_for(section), description)


def rates(section: OptimizerSection) -> np.ndarray:
    """Up for four steps, then down: any numbers would do, as long as both sides use the same."""
    factors = [0.25, 0.5, 0.75, *np.linspace(1.0, 0.1, STEPS - 3)]
    return section.learning_rate * np.asarray(factors)


def rate_for(section: OptimizerSection) -> Schedule:
    return lambda step: jnp.asarray(rates(section))[step]


def train(
    optimizer: optax.GradientTransformation,
    params: dict[str, np.ndarray],
    gradients: Iterable[dict[str, np.ndarray]],
) -> Params:
    """Parameters after one update a gradient, under jit."""
    current = {path: jnp.asarray(value) for path, value in params.items()}
    state = jax.jit(optimizer.init)(current)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        current, state = step(current, state, gradient)
    return current


def unstack(values: dict, description: Description) -> dict:
    """`layers/a` as `layers.0/a`, `layers.1/a`; of specs or of arrays."""
    result = {}
    for path, value in values.items():
        entry = description[path]
        if entry.axes[:1] != ("layers",):
            result[path] = value
            continue
        for layer in range(entry.shape[0]):
            name = path.replace("layers/", f"layers.{layer}/", 1)
            result[name] = (
                spec(entry.shape[1:], *entry.axes[1:])
                if isinstance(value, ParamSpec)
                else value[layer]
            )
    return result
