"""What a user writes becomes a configuration, or a message that says what to write instead."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from jaxscale.config.explain import section_of
from jaxscale.config.loading import load_config, load_model
from jaxscale.config.run import RunConfig
from jaxscale.config.text import schema, to_yaml
from jaxscale.errors import UserError
from jaxscale.models.families import resolve

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
RUNS = sorted(ROOT.glob("configs/*.yaml"))
MODELS = sorted(ROOT.glob("configs/models/*.yaml"))
BASE = """
model: {family: llama3, vocab_size: 64, max_positions: 32, num_layers: 1, embed_dim: 16, num_heads: 2, mlp_dim: 32}
training: {steps: 10, global_batch: 4}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_configurations_are_their_golden_text(path: Path) -> None:
    """A change of any default shows here as a diff. To accept one: jaxscale config show CONFIG > the golden file."""
    assert to_yaml(load_config(path)) == (GOLDEN / path.name).read_text()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_shipped_models_are_their_golden_text(path: Path) -> None:
    """What a family's presets make of the file: a change of any preset shows here as a diff."""
    section, _ = load_model(path)
    text = yaml.safe_dump(asdict(resolve(section)), sort_keys=False)
    assert text == (GOLDEN / "models" / path.name).read_text()


def test_text_of_a_configuration_loads_back_to_an_equal_one(base: Path, tmp_path: Path) -> None:
    config = load_config(base, ["plan.tensor=2", "telemetry.profile.start=3"])
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again) == config


def test_overrides_lie_over_files_and_files_over_what_they_extend(
    base: Path, tmp_path: Path
) -> None:
    middle = tmp_path / "sub" / "middle.yaml"
    middle.parent.mkdir()
    middle.write_text("extends: ../base.yaml\ntraining: {steps: 20, seed: 5}\n")
    config = load_config(middle, ["training.steps=30"])
    assert (config.training.steps, config.training.seed, config.training.global_batch) == (30, 5, 4)
    assert config.name == "middle"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.stepz=5", ["unknown key 'training.stepz'", "did you mean 'steps'?"]),
        ("trainning.steps=5", ["unknown key 'trainning'", "did you mean 'training'?"]),
        (
            "training.optimizer.learning_rat=1",
            ["'training.optimizer.learning_rat'", "'learning_rate'"],
        ),
        ("plan.tensr=2", ["unknown key 'plan.tensr'", "'tensor'"]),
        ("training.steps=many", ["training.steps", "valid integer", "'many'"]),
        ("training.steps=0", ["training.steps", "greater than or equal to 1", "got 0"]),
        ("data.threads=10000", ["data.threads", "less than or equal to 1024"]),
        ("plan.remat=ful", ["plan.remat", "'full'"]),
        ("plan=automatic", ["plan", "'auto'"]),
        ("training.steps", ["not key=value"]),
        ("data.train=[{path: a, weight: -1}]", ["data.train.0.weight", "greater than 0"]),
        ("telemetry.trackers=[tensorbored]", ["telemetry.trackers.0", "'tensorboard'"]),
    ],
)
def test_mistakes_name_the_key_and_the_fix(base: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(base, [override])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("steps: [", "not valid YAML"),
        ("- a\n- b\n", "must hold sections"),
        ("extends: other.yaml\n", "no configuration file"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=part):
        load_config(path)


def test_a_missing_file_names_its_neighbour(base: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'base\.yaml'"):
        load_config(base.with_name("bse.yaml"))


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match="circle"):
        load_config(tmp_path / "a.yaml")


def test_missing_sections_are_all_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("name: empty\n")
    with pytest.raises(UserError, match="2 problems") as caught:
        load_config(path)
    assert "model is required" in str(caught.value)
    assert "training is required" in str(caught.value)


def test_a_model_file_is_a_model_without_a_run() -> None:
    section, length = load_model(ROOT / "configs/models/llama3-8b.yaml")
    assert (section.num_layers, length) == (32, None)


def _leaves(model: type[BaseModel]) -> list[str]:
    """Dotted keys that hold a value."""
    found = []
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        inner = _leaves(section) if section else [""]
        found += [f"{name}.{key}".rstrip(".") for key in inner]
    return found


def test_every_key_says_what_it_is_and_there_are_under_a_hundred_and_ten() -> None:
    document = schema()
    for name, definition in document["$defs"].items():
        for key, value in definition.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key} has no description"
    assert len(_leaves(RunConfig)) < 110
