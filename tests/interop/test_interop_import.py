"""`jaxscale import` makes what generate, eval and train take; a run can start from weights that are there already."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from cli_cases import call, succeed
from interop_cases import WIDE, random_tensors, write_hf

from jaxscale.checkpoint import Checkpointer, Keep
from jaxscale.config.loading import load_config
from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.data.tokenizers import load_tokenizer
from jaxscale.interop.hf_config import meaning
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.layout import whole
from jaxscale.interop.pretrained import initial_params, with_pretrained
from jaxscale.interop.run_directory import import_model
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.models.families import resolve
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place
from jaxscale.training.run import train_run

# A rate at which a parameter moves by a billionth a step: what was trained is what it started from.
STILL = "training.optimizer.learning_rate=1.0e-9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    write_hf(path)
    (path / "tokenizer_config.json").write_text('{"chat_template": "hello"}')
    return path


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny llama"
    succeed("import", "hf", folder, out)
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 400)
    return path


def restored(run: Path, step: int) -> dict[str, np.ndarray]:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpointer(run / "checkpoints", Keep()) as checkpoints:
        target = {
            entry.path: jax.ShapeDtypeStruct(entry.shape, entry.dtype, sharding=sharding)
            for entry in checkpoints.manifest(step)
            if entry.path.startswith("params/")
        }
        arrays = checkpoints.restore(target, step, allow_extra=True).arrays
    return {path.removeprefix("params/"): np.asarray(array) for path, array in arrays.items()}


def overrides(text: Path) -> list[str]:
    """A run of one step over the text, on all devices as they are."""
    store = f"data.store={text.parent / 'stores'}"
    small = ["data.sequence_length=32", "training.sample_tokens=0", "telemetry.trackers=[]"]
    steps = ["training.steps=1", "training.global_batch=8", "training.schedule.warmup_steps=0"]
    return [f"data.train={text}", store, *small, *steps, "data.workers=1", "plan={data: 8}", STILL]


def test_an_import_is_a_run_with_a_verified_checkpoint_of_the_same_values(
    run: Path, folder: Path
) -> None:
    source = open_hf(str(folder))
    arrays = restored(run, 0)
    assert arrays.keys() == source.model.description.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, source.read(path, whole(array.shape)))


def test_an_import_says_where_it_comes_from(run: Path, folder: Path) -> None:
    with Checkpointer(run / "checkpoints", Keep()) as checkpoints:
        assert checkpoints.verify(0) == []
        metadata = checkpoints.read_metadata(0)
    assert metadata["imported"] == {
        "from": str(folder),
        "format": "safetensors",
        "family": "llama",
        "dtypes": {"float32": 21},
    }
    config = load_config(run / "config.yaml")
    assert config.name == "tiny-llama"
    assert config.model.family == "llama3"


def test_the_files_of_the_tokenizer_come_along(run: Path, folder: Path) -> None:
    names = ("tokenizer.json", "tokenizer_config.json")
    assert sorted(path.name for path in (run / "tokenizer").iterdir()) == list(names)
    for name in names:
        assert (run / "tokenizer" / name).read_bytes() == (folder / name).read_bytes()


def test_an_import_generates_and_evaluates(run: Path, text: Path) -> None:
    said = succeed("generate", run, "--prompt", "to be", "--tokens", "3", "--temperature", "0")
    assert said.startswith("to be")
    store = f"data.store={text.parent / 'stores'}"
    answer = succeed("eval", run, store, "--data", text, "--batches", "1", "--json")
    # Random weights know nothing: about the logarithm of the vocabulary's size.
    assert abs(json.loads(answer)["eval_loss"] - np.log(272)) < 2


def test_a_run_that_names_nothing_but_weights_takes_model_and_tokenizer_from_them(
    folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tune.yaml"
    config.write_text(f"model: {{init_from: {folder}}}\ntraining: {{steps: 1, global_batch: 8}}\n")
    filled = with_pretrained(load_config(config))
    assert meaning(resolve(filled.model)) == meaning(resolve(WIDE))
    assert filled.model.init_from == filled.data.tokenizer == str(folder)
    other = with_pretrained(load_config(config, ["data.tokenizer=bytes", "model.max_positions=32"]))
    assert (other.data.tokenizer, other.model.max_positions) == ("bytes", 32)


def test_a_run_starts_from_the_weights_and_says_where_it_uses_them_otherwise(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    config, out, said = tmp_path / "tune.yaml", tmp_path / "run", list[str]()
    model = f"{{init_from: {folder}, rope_base: 20000}}"
    config.write_text(f"model: {model}\ntraining: {{steps: 1, global_batch: 8}}\n")
    train_run(load_config(config, overrides(text)), out, say=said.append)

    source = open_hf(str(folder))
    for path, array in restored(out, 1).items():
        started = source.read(path, whole(array.shape))
        np.testing.assert_allclose(array, started, rtol=0, atol=1e-7)
    fingerprints = {load_tokenizer(str(one)).fingerprint for one in (folder, out / "tokenizer")}
    assert len(fingerprints) == 1
    assert (out / "tokenizer/tokenizer_config.json").is_file()
    changed = [line for line in said if "was trained with" in line]
    assert len(changed) == WIDE.num_layers
    assert "rope_base=20000.0" in changed[0]
    assert "rope_base=500000.0" in changed[0]


def test_the_configuration_of_an_import_starts_from_it_on_any_mesh(run: Path) -> None:
    config = with_pretrained(load_config(run / "config.yaml"))
    assert config.model.init_from == str(run)
    assert config.data.tokenizer == str(run / "tokenizer")
    model = blueprint(model_builder(config.model))
    plan = Plan(fsdp=4, tensor=2)
    found = initial_params(config.model, model, place(plan, make_mesh(plan), model.description))
    start = restored(run, 0)
    assert found.keys() == start.keys()
    assert not found["layers/mlp/up"].sharding.is_fully_replicated
    for path, array in found.items():
        np.testing.assert_array_equal(array, start[path])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{{init_from: {tmp}/nowhere}}", "nowhere does not exist"),
        ("{{init_from: {tmp}}}", "has neither config.json .a Hugging Face model. nor config.yaml"),
        ("{{init_from: {hf}, embed_dim: 64}}", r"embed_tokens.weight is \[272, 32\] in the files"),
        ("{{init_from: model.gguf}}", "jaxscale import gguf model.gguf RUN"),
    ],
)
def test_a_start_from_what_does_not_fit_is_refused(
    model: str, words: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tune.yaml"
    section = model.format(tmp=tmp_path, hf=folder)
    config.write_text(f"model: {section}\ntraining: {{steps: 1, global_batch: 8}}\n")
    answer = call("train", config, *overrides(text), "--run-dir", tmp_path / "run")
    assert answer.status == 2
    assert re.search(words, answer.err)


def test_a_bad_directory_ends_with_status_2_and_leaves_nothing(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "hf").mkdir()
    answer = call("import", "hf", tmp_path / "hf", tmp_path / "out")
    assert answer.status == 2
    assert "has no config.json" in answer.err
    assert not (tmp_path / "out").exists()


def test_an_import_of_keys_to_ignore_and_as_json(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf", config={"made_by": "me"})
    refused = call("import", "hf", tmp_path / "hf", tmp_path / "out")
    assert (refused.status, "--ignore made_by" in refused.err) == (2, True)
    out = succeed(
        "import", "hf", tmp_path / "hf", tmp_path / "out", "--ignore", "made_by", "--json"
    )
    assert json.loads(out)["parameters"] == sum(v.size for v in random_tensors(WIDE).values())


def test_what_an_import_that_was_killed_left_behind_is_in_nobodys_way(
    folder: Path, tmp_path: Path
) -> None:
    left = tmp_path / ".out.importing"
    (left / "checkpoints").mkdir(parents=True)
    import_model(open_hf(str(folder)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_section_without_family_needs_weights_to_start_from() -> None:
    with pytest.raises(ValueError, match="give a family"):
        ModelSection()
    assert ModelSection(init_from="there").family is None
