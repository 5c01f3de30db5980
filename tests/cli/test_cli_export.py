"""`jaxscale export` on a run that was trained."""

import json
from pathlib import Path

import pytest
from cli_cases import call, succeed

from jaxscale.training.trained import load_trained


def test_hugging_face_files_are_there_and_say_the_same_text(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    words = ("export", trained, out, "--to", "hf", "--max-shard-size", "50KB")
    printed = succeed(*words)
    assert "in 4 files, every tensor read back" in printed
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["torch_dtype"]) == ("llama", "float32")
    assert config["eos_token_id"] == 256
    card = (out / "README.md").read_text()
    assert "200 of 200 steps" in card
    assert "evaluation loss" in card
    assert succeed(*words) == printed  # Again: it is complete.

    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    prompt = torch.tensor([tokenizer("The whale ")["input_ids"]])
    ids = model.generate(prompt, max_new_tokens=12, do_sample=False)[0]
    ours = succeed(
        "generate", trained, "--prompt", "The whale ", "--temperature", "0", "--tokens", "12",
        "plan.data=1",
    )  # fmt: skip
    assert tokenizer.decode(ids) + "\n" == ours


def test_stablehlo_programs_are_there(trained: Path, tmp_path: Path) -> None:
    succeed("export", trained, tmp_path / "out", "--to", "stablehlo", "--sequence-length", "32")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"forward.jax", "decode.jax", "run.py", "decode.py", "README.md"} <= names
    assert "Rows have 32 tokens" in (tmp_path / "out" / "README.md").read_text()


def test_a_pruned_and_halved_checkpoint_is_exported(trained: Path, tmp_path: Path) -> None:
    succeed("checkpoint", "convert", trained, tmp_path / "half", "--dtype", "bf16")
    succeed("export", tmp_path / "half", tmp_path / "hf", "--to", "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_parts_of_two_processes_make_one_export(trained: Path, tmp_path: Path) -> None:
    words = ("export", trained, tmp_path / "hf", "--to", "hf", "--num-processes", "2")
    assert "others are not yet" in succeed(*words, "--process", "1")
    assert "every tensor read back" in succeed(*words, "--process", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{run}", "{new}", "--to", "hf", "--dtype", "int4"), "'int4' is not a dtype"),
        (("{run}", "{new}", "--to", "hf", "--max-shard-size", "big"), "--max-shard-size 'big'"),
        (("{run}", "{new}", "--to", "hf", "--process", "2"), "process 2 of 1"),
        (("{run}", "{new}", "--to", "hf", "--weights", "average"), "has no average"),
        (("{run}", "{run}", "--to", "hf"), "is not empty"),
        (("{new}", "{run}", "--to", "hf"), "there is no directory"),
    ],
)
def test_bad_input_is_one_message(
    trained: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    words = [word.format(run=trained, new=tmp_path / "new") for word in arguments]
    answer = call("export", *words)
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_the_run_is_as_it_was(trained: Path) -> None:
    """The other tests of this file read it, and only read it."""
    assert load_trained(trained, ["plan.data=1"], warn=print).step == 200
