"""The model section: what it accepts, what a family fills in, and what it says when sizes do not fit."""

from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx
from models_cases import CASES, architecture, section
from pydantic import ValidationError

from jaxscale.config.model_section import ModelSection
from jaxscale.errors import UserError
from jaxscale.models.architecture import LayerKind, RopeScaling
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.models.families import resolve

LLAMA = CASES["llama3, grouped"]


def test_a_section_has_under_32_keys_each_with_a_description() -> None:
    scaling = ModelSection.model_json_schema()["$defs"]["RopeScalingSection"]["properties"]
    keys = ModelSection.model_fields
    assert len(keys) + len(scaling) < 32
    assert all(field.description for field in keys.values())
    assert all("description" in value for value in scaling.values())


def test_the_family_fills_in_what_is_left_out_and_the_section_wins() -> None:
    plain = architecture("llama3, grouped")
    assert (plain.rope_base, plain.norm_epsilon, plain.tied_embeddings) == (5e5, 1e-5, False)
    own = architecture("llama3, grouped", rope_base=7e4, norm_epsilon=1e-4, tied_embeddings=True)
    assert (own.rope_base, own.norm_epsilon, own.tied_embeddings) == (7e4, 1e-4, True)


def test_sizes_left_out_follow_from_the_others() -> None:
    arch = architecture("gpt2")
    assert (arch.num_kv_heads, arch.head_dim, arch.mlp_dim) == (3, 7, 84)
    assert arch.query_scale == 7
    assert arch.attention_scale == pytest.approx(7**-0.5)


def test_llama_3_1_stretches_positions_eightfold_and_3_2_by_32() -> None:
    published = {"llama3.1": 8.0, "llama3.2": 32.0}
    for family, factor in published.items():
        scaling = architecture("llama3, grouped", family=family).rope_scaling
        assert scaling == RopeScaling(factor, 1.0, 4.0, 8192)


def test_zero_switches_off_what_the_family_has() -> None:
    arch = architecture("gemma2, odd layers", window=0, attention_softcap=0, logit_softcap=0)
    assert (arch.window, arch.window_pattern, arch.period) == (None, None, 1)
    assert (arch.attention_softcap, arch.logit_softcap) == (None, None)
    everywhere = architecture("gemma2, odd layers", window_pattern=0)
    assert {everywhere.kind(layer).window for layer in range(5)} == {5}


def test_gemma3_has_five_local_layers_then_a_global_one_with_its_own_rotation() -> None:
    arch = architecture("gemma3, layers beyond the pattern")
    local, everything = LayerKind(5, 1e4, None), LayerKind(None, 1e6, RopeScaling(8.0))
    assert arch.kinds == (local,) * 5 + (everything,)
    assert [arch.kind(layer) for layer in (0, 5, 6, 11)] == [local, everything, local, everything]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama3, grouped", {"num_kv_heads": 4}, r"num_heads 6 .* num_kv_heads 4.*\[1, 2, 3, 6\]"),
        ("llama3, grouped", {"head_dim": 7}, "head_dim 7 is odd.*6 or 8"),
        ("gpt2", {"embed_dim": 22}, "embed_dim 22 .* num_heads 3"),
        ("llama3, grouped", {"mlp_dim": None}, "needs mlp_dim"),
        ("llama3, grouped", {"window_pattern": 2}, "window_pattern 2 without a window"),
        ("mistral, short window", {"window_pattern": 1}, "window_pattern 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        architecture(name, **changes)


def test_an_odd_head_dim_is_fine_where_positions_are_learned() -> None:
    assert architecture("gpt2").head_dim == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give a family"),
        (
            {"family": "llama3", "vocab_size": 8},
            "needs max_positions, num_layers, embed_dim, num_heads",
        ),
        (LLAMA | {"family": "llama9"}, "llama9|Input should be"),
        (LLAMA | {"num_layer": 3}, "num_layer"),
        (LLAMA | {"num_layers": 0}, "num_layers"),
        (LLAMA | {"args": {"width": 3}}, "args are for build"),
        (LLAMA | {"build": "a.py:f"}, "would be ignored"),
        (LLAMA | {"rope_scaling": {"factor": 2, "original_positions": 9}}, "go together"),
        (
            LLAMA
            | {
                "rope_scaling": {
                    "factor": 2,
                    "low_frequency_factor": 4,
                    "high_frequency_factor": 1,
                    "original_positions": 9,
                }
            },
            "must be smaller",
        ),
    ],
)
def test_an_impossible_section_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSection(**values)


def test_a_plain_string_is_a_builder() -> None:
    assert ModelSection.model_validate("mine.py:make") == ModelSection(build="mine.py:make")
    with pytest.raises(UserError, match="no family"):
        resolve(ModelSection(build="mine.py:make"))


OWN = """
import jax.numpy as jnp
from flax import nnx

class Own(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.table = nnx.Param(jnp.ones((3, width)), axes=("vocab", "embed"))

def not_a_model(rngs):
    return 7

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own_model.py"
    path.write_text(OWN)
    return path


def test_the_users_module_is_built_from_a_file_with_its_arguments(own: Path) -> None:
    build = model_builder(ModelSection(build=f"{own}:Own", args={"width": 5}))
    description = blueprint(build).description
    assert {path: spec.shape for path, spec in description.items()} == {"table": (3, 5)}


def test_the_users_module_is_built_from_an_importable_name(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(own.parent))
    build = model_builder(ModelSection(build="own_model:Own", args={"width": 4}))
    assert isinstance(build(nnx.Rngs(0)), nnx.Module)


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        ("no colon", {}, "does not name a function"),
        ("{own}.missing.py:Own", {}, "there is no file"),
        ("no.such.module:Own", {}, "there is no module 'no'"),
        ("{own}:Missing", {}, "has no 'Missing'. It defines: Own, not_a_model"),
        ("{own}:number", {}, "is of type int"),
        ("{own}:Own", {}, "missing a required argument: 'width'"),
        ("{own}:Own", {"width": 1, "depth": 2}, "unexpected keyword argument 'depth'"),
    ],
)
def test_a_builder_that_cannot_be_called_is_refused(
    own: Path, target: str, args: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model_builder(ModelSection(build=target.format(own=own), args=args))


def test_a_builder_that_returns_no_module_is_refused(own: Path) -> None:
    build = model_builder(ModelSection(build=f"{own}:not_a_model"))
    with pytest.raises(UserError, match="returned int"):
        build(nnx.Rngs(0))


def test_the_largest_model_is_described_without_memory() -> None:
    sizes = {"num_layers": 126, "embed_dim": 16384, "num_heads": 128, "mlp_dim": 53248}
    model = blueprint(model_builder(section("llama3, grouped", **sizes)))
    assert sum(spec.num_bytes for spec in model.description.values()) > 1e12
    assert all(isinstance(v.get_value(), jax.ShapeDtypeStruct) for v in model.variables.values())
