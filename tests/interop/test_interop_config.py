"""config.json becomes our section and back; what cannot be represented is refused by name."""

import re
from pathlib import Path
from typing import Any

import pytest
from models_cases import CASES, architecture, section

from jaxscale.config.loading import load_model
from jaxscale.config.model_section import ModelSection
from jaxscale.errors import UserError
from jaxscale.interop.families import FAMILIES
from jaxscale.interop.hf_config import from_hf_config, meaning, to_hf_config
from jaxscale.models.families import resolve

MODELS = sorted((Path(__file__).parents[2] / "configs/models").glob("*.yaml"))

# As Meta publishes it (Llama-3.2-1B, transformers 4.45), with the keys that matter to nobody here.
LLAMA_3_2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
SHARED_OF_A_LAYER = (
    "input_layernorm",
    "self_attn.o_proj",
    "mlp.down_proj",
    "post_attention_layernorm",
)
GPT2: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "summary_activation": None,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


def keys(given: ModelSection) -> dict[str, Any]:
    return given.model_dump(exclude_unset=True)


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        from_hf_config({**LLAMA_3_2, **changes})
    return str(caught.value)


def test_a_published_llama_is_its_preset_and_sizes() -> None:
    assert keys(from_hf_config(LLAMA_3_2).section) == {
        "family": "llama3.2",
        "vocab_size": 128256,
        "max_positions": 131072,
        "num_layers": 16,
        "embed_dim": 2048,
        "num_heads": 32,
        "num_kv_heads": 8,
        "mlp_dim": 8192,
    }


def test_a_published_gpt2_follows_from_five_sizes_and_says_that_dropout_is_not_used() -> None:
    found = from_hf_config(GPT2)
    assert keys(found.section) == {
        "family": "gpt2",
        "vocab_size": 50257,
        "max_positions": 1024,
        "num_layers": 12,
        "embed_dim": 768,
        "num_heads": 12,
    }
    assert found.notes == ("attn_pdrop 0.1 is not used: jaxscale has no dropout",)


def test_old_and_new_spellings_of_rotary_positions_mean_the_same() -> None:
    new = {key: value for key, value in LLAMA_3_2.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {**LLAMA_3_2["rope_scaling"], "rope_theta": 500000.0}
    assert from_hf_config(new).section == from_hf_config(LLAMA_3_2).section


def test_the_text_part_of_a_gemma_that_sees_is_found() -> None:
    text = {"hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10240}
    scaling = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    config = {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", **text, **scaling},
        "vision_config": {"hidden_size": 1152},
    }
    found = from_hf_config(config)
    published, _ = load_model(MODELS[0].with_name("gemma3-4b.yaml"))
    assert meaning(resolve(found.section)) == meaning(resolve(published))
    assert "sees images" in found.notes[0]


@pytest.mark.parametrize("name", CASES)
def test_every_awkward_model_survives_the_way_there_and_back(name: str) -> None:
    back = from_hf_config(to_hf_config(section(name))[1]).section
    assert meaning(resolve(back)) == meaning(architecture(name))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_published_size_survives_the_way_there_and_back(path: Path) -> None:
    published, _ = load_model(path)
    family, config = to_hf_config(published)
    assert meaning(resolve(from_hf_config(config).section)) == meaning(resolve(published))
    assert published.family in family.ours


def test_a_model_that_only_another_family_computes_is_written_as_that_one() -> None:
    windowed = section("llama3, grouped", window=16)
    family, config = to_hf_config(windowed)
    assert (family.model_type, config["sliding_window"]) == ("mistral", 16)


def test_a_model_that_no_family_computes_is_refused_with_what_would_change() -> None:
    with pytest.raises(
        UserError, match=r"LlamaForCausalLM differs in .*logit_softcap: None for 7\.0"
    ):
        to_hf_config(section("llama3, grouped", logit_softcap=7.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "attention_bias is True.*attention_bias: False"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "type 'yarn' cannot"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor, a number"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 3}}, "{'beta': 3}"),
        ({"rope_scaling": {"type": "default", "mrope": [1]}}, "{'mrope': .1.}"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters .* contradict"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"num_experts": 8}, "num_experts: 8"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', not a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, not a positive"),
        ({"num_key_value_heads": 5}, "num_kv_heads 5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized .gptq."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_represented_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    assert re.search(words, refusal(**changes))


def test_a_key_that_does_not_matter_can_be_passed_over() -> None:
    odd = {**LLAMA_3_2, "made_by": "me"}
    message = refusal(made_by="me")
    assert "made_by: 'me'" in message
    assert "--ignore made_by" in message
    assert from_hf_config(odd, ignore=["made_by"]).section == from_hf_config(LLAMA_3_2).section


def test_windows_that_follow_no_pattern_are_refused() -> None:
    config = to_hf_config(section("gemma2, odd layers"))[1]
    kinds = ["full_attention", "full_attention", *["sliding_attention"] * 3]
    with pytest.raises(UserError, match="every n-th layer sees everything"):
        from_hf_config({**config, "layer_types": kinds})


def test_rotary_positions_of_gemma_3_are_said_for_both_kinds_of_layer() -> None:
    config = to_hf_config(section("gemma3, fewer layers than the pattern"))[1]
    with pytest.raises(UserError, match="has to say full_attention and sliding_attention"):
        from_hf_config({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}})


def test_an_unknown_family_is_told_its_nearest_and_what_differs() -> None:
    phi = {**LLAMA_3_2, "model_type": "phi3", "embd_pdrop": 0.0, "original_max": 4096}
    shared = ["embed_tokens", "norm", *(f"layers.3.{name}" for name in SHARED_OF_A_LAYER)]
    own = ["layers.3.self_attn.qkv_proj", "layers.3.mlp.gate_up_proj"]
    tensors = [f"model.{name}.weight" for name in (*shared, *own)]
    with pytest.raises(UserError) as caught:
        from_hf_config(phi, tensors=tensors)
    message = str(caught.value)
    assert "model_type 'phi3'" in message
    assert "Nearest: llama" in message
    assert "original_max=4096" in message
    assert "of its own: model.layers.{layer}.mlp.gate_up_proj.weight, model.layers" in message
    assert "lacks: model.layers.{layer}.mlp.gate_proj.weight, model.layers" in message


def test_defaults_of_keys_left_out_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for family in FAMILIES:
        theirs = transformers.AutoConfig.for_model(family.model_type).to_dict()
        for key, value in family.defaults.items():
            assert value is None or theirs[key] == value, (family.model_type, key)
        empty = from_hf_config({"model_type": family.model_type})
        assert meaning(resolve(empty.section)) == meaning(resolve(from_hf_config(theirs).section))
