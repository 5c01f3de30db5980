"""What transformers saved is imported as the same model: same parameters, same logits."""

from pathlib import Path

import jax
import numpy as np
import pytest
from models_cases import CASES, architecture, random_tokens

from jaxscale.config.plan import Plan
from jaxscale.interop.hf_config import meaning
from jaxscale.interop.pretrained import Pretrained, load_pretrained
from jaxscale.models.description import bind
from jaxscale.models.families import resolve
from jaxscale.parallel.mesh import make_mesh

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from models_hf_oracle import hf_logits, hf_model, our_params


def load(folder: Path) -> Pretrained:
    return load_pretrained(str(folder), Plan(), make_mesh(Plan(), jax.devices()[:1]))


@pytest.mark.parametrize("name", CASES)
def test_logits_of_an_import_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    arch = architecture(name)
    theirs = hf_model(arch)
    theirs.save_pretrained(tmp_path)
    imported = load(tmp_path)
    assert meaning(resolve(imported.section)) == meaning(arch)

    tokens = random_tokens()
    ours = jax.jit(lambda p, t: bind(imported.model, p)(t))(imported.params, tokens)

    expected = hf_logits(theirs, tokens)
    # fp32 rounds at 6e-8; a dozen chained products of width 30 leave about 1e-6 of the largest logit.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_shards_of_bfloat16_are_the_rounded_parameters(tmp_path: Path) -> None:
    arch = architecture("llama3, grouped")
    theirs = hf_model(arch).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    expected = our_params(theirs.to(torch.float32), arch)
    for path, array in load(tmp_path).params.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[path])


@pytest.mark.parametrize("name", ["gpt2", "llama2, odd heads"])
def test_a_base_model_without_its_prefix_and_with_masks_is_understood(
    name: str, tmp_path: Path
) -> None:
    """The first GPT-2 files are so: `h.0.attn.bias` is the causal mask, `wte.weight` has no `transformer.`."""
    arch = architecture(name, tied_embeddings=True)
    theirs = hf_model(arch)
    base = theirs.base_model
    mask = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3), "h.0.attn.bias": torch.ones(9)}
    base.save_pretrained(tmp_path, state_dict={**base.state_dict(), **mask})
    expected = our_params(theirs, arch)
    found = load(tmp_path).params
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path])
