"""GGUF files are read as transformers reads them, and as the tensors that were written into them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import BOOK
from interop_cases import random_tensors, write_hf
from models_cases import section
from tokenizers import SentencePieceBPETokenizer, Tokenizer

from jaxscale.config.model_section import ModelSection, RopeScalingSection
from jaxscale.data.tokenizers import load_tokenizer
from jaxscale.errors import UserError
from jaxscale.interop.gguf_import import open_gguf
from jaxscale.interop.gguf_tokenizer import read_tokenizer
from jaxscale.interop.hf_config import from_hf_config, meaning
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.layout import whole
from jaxscale.interop.open_model import OpenModel
from jaxscale.models.families import resolve
from jaxscale.training.sampling import encode_prompt

pytest.importorskip("gguf")

import gguf
from gguf_cases import write_gguf

# Llama 3's stretching, the only one by frequency that a file can mean.
LLAMA3 = {
    "factor": 8.0,
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
    "original_positions": 8192,
}
CASES: dict[str, ModelSection] = {
    "gpt2": section("gpt2"),
    "llama2": section("llama2, odd heads"),
    "llama3.1": section("llama3.1, stretched", rope_scaling=LLAMA3, head_dim=16),
    "qwen2": section("qwen2"),
    "qwen3": section("qwen3"),
    "gemma2": section("gemma2, odd layers", query_scale=6.0),
    "gemma3": section("gemma3, layers beyond the pattern"),
}


def parameters(source: OpenModel) -> dict[str, np.ndarray]:
    description = source.model.description
    return {path: source.read(path, whole(spec.shape)) for path, spec in description.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_the_model_that_was_written_into_it(name: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", CASES[name], random_tensors(CASES[name]))
    write_hf(tmp_path, CASES[name])
    source = open_gguf(tmp_path / "a.gguf")
    assert meaning(resolve(source.section)) == meaning(resolve(CASES[name]))
    expected = parameters(open_hf(str(tmp_path)))
    for path, values in parameters(source).items():
        # Gemma's norms are stored as 1 + w: half a unit in the last place of a number near one.
        np.testing.assert_allclose(values, expected[path], rtol=0, atol=1.2e-7)


# Sizes that transformers' reader does not look up in a file are those that it takes for granted.
AS_TRANSFORMERS = {
    "gpt2": section("gpt2", max_positions=1024),
    "llama2": CASES["llama2"],
    "qwen2": CASES["qwen2"],
    "qwen3": section("qwen3", head_dim=128),
    "gemma2": section(
        "gemma2, odd layers",
        head_dim=256,
        query_scale=256.0,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma3": section("gemma3, fewer layers than the pattern", head_dim=256, query_scale=256.0),
}


# A key that its reader of GPT-2 does not translate.
LEFT_OVER = ("feed_forward_length",)


@pytest.mark.parametrize("name", AS_TRANSFORMERS)
def test_transformers_reads_the_same_model_out_of_a_file(name: str, tmp_path: Path) -> None:
    for package in ("torch", "transformers", "accelerate"):
        pytest.importorskip(package)
    import torch
    import transformers
    from models_hf_oracle import our_params

    write_gguf(tmp_path / "a.gguf", AS_TRANSFORMERS[name], random_tensors(AS_TRANSFORMERS[name]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    )
    ours = open_gguf(tmp_path / "a.gguf")
    arch = resolve(ours.section)
    config = {**theirs.config.to_dict(), "quantization_config": None}
    epsilon = "layer_norm_epsilon" if name == "gpt2" else "rms_norm_eps"
    assert np.float32(config[epsilon]) == np.float32(arch.norm_epsilon)  # Stored in float32.
    config[epsilon] = arch.norm_epsilon
    assert meaning(resolve(from_hf_config(config, ignore=LEFT_OVER).section)) == meaning(arch)
    expected = our_params(theirs, arch)
    for path, values in parameters(ours).items():
        np.testing.assert_array_equal(values, expected[path])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16", "F16"])
def test_quantized_weights_are_dequantized_and_marked(kind: str, tmp_path: Path) -> None:
    # Rows of whole blocks: 32 values share a scale.
    wide = section("llama2, odd heads", embed_dim=32, mlp_dim=64, num_heads=4, head_dim=8)
    tensors = random_tensors(wide)
    write_gguf(tmp_path / "a.gguf", wide, tensors, gguf.GGMLQuantizationType[kind])
    write_hf(tmp_path, wide, tensors=tensors)
    source = open_gguf(tmp_path / "a.gguf")
    quantized = kind.startswith("Q")
    assert source.facts["dequantized_from"] == [kind] * quantized
    assert len(source.notes) == quantized
    # Half a step of a block whose largest of 32 values is at most 4.5 deviations of 0.2.
    step = {
        "Q8_0": 0.9 / 127,
        "Q4_0": 0.9 / 7,
        "Q5_1": 1.8 / 31,
        "BF16": 0.9 / 128,
        "F16": 0.9 / 1024,
    }
    expected = parameters(open_hf(str(tmp_path)))
    for path, values in parameters(source).items():
        np.testing.assert_allclose(values, expected[path], rtol=0, atol=step[kind])
        assert path.endswith("scale") or (values != expected[path]).any()


def test_a_box_of_a_file_is_that_part_of_the_whole(tmp_path: Path) -> None:
    for name in ("gpt2", "llama2"):
        write_gguf(tmp_path / "a.gguf", CASES[name], random_tensors(CASES[name]))
        source = open_gguf(tmp_path / "a.gguf")
        for path, values in parameters(source).items():
            box = tuple(slice(size // 3, max(size // 3 + 1, size - 1)) for size in values.shape)
            np.testing.assert_array_equal(source.read(path, box), values[box])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general.architecture": "phi3"}, "kind 'phi3'; jaxscale reads GGUF of gpt2, llama"),
        ({"split.count": 3}, "one part of 3: join them with `llama-gguf-split --merge`"),
        ({"llama.expert_count": 8}, "has 8 experts"),
        ({"llama.block_count": 3}, "missing: model.layers.2.input_layernorm.weight"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary positions by yarn"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_files_of_other_models_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "a.gguf", CASES["llama2"], random_tensors(CASES["llama2"]), **changes)
    with pytest.raises(UserError, match=re.escape(words)):
        open_gguf(tmp_path / "a.gguf")


def test_frequencies_that_are_not_those_of_llama_3_are_refused(tmp_path: Path) -> None:
    other = CASES["llama3.1"].model_copy(
        update={"rope_scaling": RopeScalingSection(**LLAMA3 | {"original_positions": 32})}
    )
    write_gguf(tmp_path / "a.gguf", other, random_tensors(other))
    with pytest.raises(UserError, match="not Llama 3's"):
        open_gguf(tmp_path / "a.gguf")


@pytest.mark.parametrize("size", [0, 3, 100, 5000])
def test_a_truncated_file_is_named(size: int, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(file, CASES["llama2"], random_tensors(CASES["llama2"]))
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=re.escape(f"{file} is not a whole GGUF file")):
        open_gguf(file)


def test_a_tokenizer_that_cannot_be_rebuilt_is_asked_for(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", CASES["llama2"], random_tensors(CASES["llama2"]))
    write_hf(tmp_path / "hf")
    given = str(tmp_path / "hf")
    assert open_gguf(tmp_path / "a.gguf", given).tokenizer_files()["tokenizer.json"]
    with pytest.raises(UserError, match="--tokenizer FILE"):
        open_gguf(tmp_path / "a.gguf").tokenizer_files()


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_is_rebuilt_from_its_scores(
    tmp_path: Path, *, prefix: bool
) -> None:
    """One that `tokenizers` trained, with the score of a token as SentencePiece has it: minus when it was learned."""
    text = BOOK.read_text(encoding="utf-8")[:60_000]
    trained = SentencePieceBPETokenizer(add_prefix_space=prefix, fuse_unk=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        [text], vocab_size=1200, special_tokens=special, show_progress=False
    )
    vocabulary = trained.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [6 if token.startswith("<0x") else 3 if token in special else 1 for token in tokens]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(place) for place in range(len(tokens))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.bos_token_id": 1,
    }
    definition = read_tokenizer(Path("a.gguf"), fields, None)
    rebuilt = Tokenizer.from_str(definition.decode())
    words = text.split()[5000:9000]
    for start in range(0, len(words), 10):
        part = " ".join(words[start : start + 10])
        found = rebuilt.encode(part, add_special_tokens=False)
        assert found.tokens == trained.encode(part).tokens
        assert rebuilt.decode(found.ids) == part
    # Bytes where there is no token.
    whale = rebuilt.encode("\U0001f40b").tokens
    assert whale[0] == "<s>"
    assert whale[-4:] == ["<0xF0>", "<0x9F>", "<0x90>", "<0x8B>"]
    text = "a  whale \U0001f40b"
    assert rebuilt.decode(rebuilt.encode(text).ids) == text
    (tmp_path / "tokenizer.json").write_bytes(definition)
    assert encode_prompt(load_tokenizer(str(tmp_path)), text) == rebuilt.encode(text).ids
