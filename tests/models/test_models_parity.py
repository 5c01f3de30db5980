"""Logits and greedy text equal those of transformers for every family, in awkward shapes."""

import jax
import numpy as np
import pytest
from models_cases import CASES, architecture, make_blueprint, random_tokens

from jaxscale.models.description import bind

pytest.importorskip("torch")
pytest.importorskip("transformers")

from models_hf_oracle import hf_logits, hf_model, our_params


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str) -> None:
    arch, model = architecture(name), make_blueprint(name)
    theirs = hf_model(arch)
    params = our_params(theirs, arch)
    assert {path: p.shape for path, p in params.items()} == {
        path: spec.shape for path, spec in model.description.items()
    }
    tokens = random_tokens()

    ours = jax.jit(lambda p, t: bind(model, p)(t))(params, tokens)

    expected = hf_logits(theirs, tokens)
    # fp32 rounds at 6e-8; a dozen chained products of width 30 leave about 1e-6 of the largest logit.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
