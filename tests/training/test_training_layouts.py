"""The same numbers on every layout: one device is the plain run, every mesh is compared with it."""

import numpy as np
import pytest
from few_steps import WITHOUT_GRADIENT, distance, train
from tiny import FAMILIES, tiny_model, tiny_training

from jaxscale.config.plan import Plan
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint

LAYOUTS = {
    "accumulation 4": Plan(microbatches=4),
    "data 8": Plan(data=8),
    "fsdp 8": Plan(fsdp=8),
    "tensor 2": Plan(tensor=2),
    "tensor 4": Plan(tensor=4),
    "tensor 8": Plan(tensor=8),
    "data 2 fsdp 2 tensor 2": Plan(data=2, fsdp=2, tensor=2),
    "fsdp 4 tensor 2, logits over both": Plan(fsdp=4, tensor=2, rules={"vocab_activation": "fsdp"}),
    "data 2 fsdp 4, logits over fsdp, accumulation 2": Plan(
        data=2, fsdp=4, microbatches=2, rules={"vocab_activation": "fsdp"}
    ),
    "data 2 fsdp 2 tensor 2, accumulation 4": Plan(data=2, fsdp=2, tensor=2, microbatches=4),
}
# What differs between families is which dims of which parameters an axis splits: once as far as it can, and all axes
# together. How many devices an axis has, and microbatches alone, are nothing that a family changes.
BY_FAMILY = ("fsdp 8", "tensor 8", "data 2 fsdp 2 tensor 2, accumulation 4")
# Where parameters are made anew, each in its place; the others begin with those of one device.
FRESH = {
    family: BY_FAMILY[-1:] if family != "llama3" else ("data 8", *BY_FAMILY) for family in FAMILIES
}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family == "llama3" else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_every_layout_trains_like_one_device(family: str) -> None:
    """fp32 sums in another order differ by a few units of 2^-24: 1e-5 leaves room for sums of thousands.

    AdamW divides a gradient by its own size, so that where a gradient is near zero its rounding error
    becomes part of the update. What 5 steps added to a parameter is therefore compared as a whole,
    within 1e-3 of its 2-norm: a single wrong entry in 1000 is 30 times more.
    """
    model = blueprint(model_builder(tiny_model(family)))
    training = tiny_training()
    losses, norms, updates, first = train(model, Plan(), training)
    assert losses[4] < losses[2] < losses[0]  # all on the same batch
    for name in LAYOUTS if family == "llama3" else BY_FAMILY:
        given = None if name in FRESH[family] else first
        other = train(model, LAYOUTS[name], training, first=given)
        np.testing.assert_allclose(other.losses, losses, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(other.norms, norms, rtol=1e-5, err_msg=name)
        for path, update in updates.items():
            if (family, path) not in WITHOUT_GRADIENT:
                assert distance(other.updates[path], update) < 1e-3, f"{name}: {path}"
