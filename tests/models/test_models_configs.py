"""Every shipped model configuration has exactly the published number of parameters."""

from pathlib import Path

import pytest
import yaml

from jaxscale.config.model_section import Family, ModelSection
from jaxscale.models.architecture import Architecture
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.models.families import PRESETS, resolve

FOLDER = Path(__file__).parents[2] / "configs" / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# As the publishers count (sizes of the tensors in their checkpoints, tied tables once). GPT-3 publishes "175.0 B" only.
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
}


def _section(name: str) -> ModelSection:
    document = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(document) == {"model"}
    return ModelSection(**document["model"])


def _num_parameters(name: str) -> int:
    model = blueprint(model_builder(_section(name)))
    return sum(spec.size for spec in model.description.values())


def _architecture(name: str) -> Architecture:
    return resolve(_section(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_has_its_published_parameter_count(name: str) -> None:
    assert _num_parameters(name) == PUBLISHED[name]


def test_gpt3_has_175_billion_parameters() -> None:
    # arXiv:2005.14165, table 2.1 prints 175.0B: three figures after rounding, position table included or not.
    assert round(_num_parameters("gpt3-175b") / 1e9) == 175


@pytest.mark.parametrize("name", NAMES)
def test_transformers_counts_the_same_parameters(name: str) -> None:
    pytest.importorskip("torch")
    from models_hf_oracle import hf_num_parameters

    assert _num_parameters(name) == hf_num_parameters(_architecture(name))


def test_every_family_has_a_preset() -> None:
    assert set(PRESETS) == set(Family.__args__)
