"""Small descriptions written by hand, and ways to run an optimizer on them."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxscale.config.optimizer_section import OptimizerSection, ScheduleSection
from jaxscale.models.description import Description, Params, ParamSpec
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import learning_rate

STEPS = 20
NAMES = ("adamw", "adafactor", "lion", "muon")


def spec(shape: tuple[int, ...], *axes: str | None) -> ParamSpec:
    return ParamSpec(shape, np.dtype("float32"), axes)


# 128 is where Adafactor begins to factor, so that `gate`, `query` and `output` are factored and the rest is not.
LLAMA: Description = {
    "embedding/table": spec((20, 128), "vocab", "embed"),
    "layers/attention_norm/scale": spec((3, 128), "layers", "norm"),
    "layers/attention/query": spec((3, 128, 2, 130), "layers", "embed", "heads", "head_dim"),
    "layers/attention/key": spec((3, 128, 1, 8), "layers", "embed", "kv_heads", "head_dim"),
    "layers/attention/query_norm/scale": spec((3, 8), "layers", "head_dim"),
    "layers/attention/output": spec((3, 2, 130, 128), "layers", "heads", "head_dim", "embed"),
    "layers/mlp/gate": spec((3, 128, 144), "layers", "embed", "mlp"),
    "layers/mlp/down": spec((3, 16, 128), "layers", "mlp", "embed"),
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
# A user's own module: names and axes that nobody foresaw.
OWN: Description = {
    "encoder/conv": spec((3, 3, 4, 8), None, None, "channels_in", "channels_out"),
    "encoder/dense": spec((8, 6), None, None),
    "encoder/gain": spec((8,), None),
    "encoder/fused": spec((8, 3, 2, 4), "embed", None, "heads", "head_dim"),
    "encoder/temperature": spec(()),
    "classifier/head/kernel": spec((6, 5), "embed", "classes"),
}


def normal(description: Description, seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Standard normal values, another scale for each layer: an optimizer that mixes layers shows."""
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


def rate_for(section: OptimizerSection):
    schedule = ScheduleSection(name="linear", warmup_steps=4)
    return learning_rate(schedule, peak=section.learning_rate, steps=STEPS)


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
    """`layers/a` of three layers as `layers.0/a`, `layers.1/a`, `layers.2/a`; for specs as for arrays."""
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
