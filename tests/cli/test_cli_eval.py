"""`jaxscale eval` prints what training recorded, on any mesh, and evaluates any text."""

import json
import math
import shutil
from pathlib import Path

import pytest
from cli_cases import EVAL_BATCHES, call, succeed

RECORDED = ("eval_loss", "eval_perplexity", "eval_bits_per_byte", "eval_tokens")
SAME_BATCHES = ("--batches", str(EVAL_BATCHES), "--json")


def last_evaluation(run: Path) -> dict[str, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "eval_loss" in line][-1]


@pytest.mark.parametrize(
    "mesh",
    [
        (),
        ("plan.data=1",),
        ("plan.data=2", "plan.tensor=2"),
        ("plan.fsdp=2", "plan.tensor=4"),
        ("plan.data=3",),  # Which does not divide the eight rows of a batch.
    ],
)
def test_any_mesh_finds_the_loss_that_training_recorded(
    trained: Path, mesh: tuple[str, ...]
) -> None:
    """Sums in another order: fp32 rounding of about 1e-7 a term, 1e-5 in all."""
    found = json.loads(succeed("eval", trained, *mesh, *SAME_BATCHES))
    expected = last_evaluation(trained)
    assert found["step"] == 200
    assert [found[key] for key in RECORDED] == pytest.approx(
        [expected[key] for key in RECORDED], rel=1e-5
    )


def test_the_numbers_are_printed_with_their_units(trained: Path) -> None:
    values = json.loads(succeed("eval", trained, "plan.data=1", "--json"))
    loss, tokens = values["eval_loss"], values["eval_tokens"]
    line = succeed("eval", trained, "plan.data=1")
    assert line == (
        f"step 200: loss {loss:.4f} nats a token, perplexity {math.exp(loss):.2f}, "
        f"{values['eval_bits_per_byte']:.4f} bits per byte over {tokens:,} tokens\n"
    )
    assert tokens > EVAL_BATCHES * 8 * 32  # The whole held-out text.


def test_other_text_is_evaluated_as_text_and_as_a_store(trained: Path, tmp_path: Path) -> None:
    """The text that the run was trained on is not needed."""
    text, store = tmp_path / "text.txt", tmp_path / "store"
    text.write_text("Call me Ishmael. " * 40)
    succeed("data", "prepare", text, "--out", store, "--eval-fraction", "0")
    gone = ("data.train=gone.txt", f"data.store={tmp_path}", "plan.data=1", "--json")
    as_text = json.loads(succeed("eval", trained, "--data", text, *gone))
    assert as_text["eval_tokens"] == 17 * 40  # Each byte, and the end of the document.
    assert json.loads(succeed("eval", trained, "--data", store, *gone)) == as_text
    assert json.loads(succeed("eval", trained, "--data", store / "train", *gone)) == as_text
    assert as_text["eval_loss"] != pytest.approx(last_evaluation(trained)["eval_loss"], rel=1e-2)


def test_a_store_of_another_tokenizer_is_refused(trained: Path, tmp_path: Path) -> None:
    text = trained.parent / "text.txt"
    succeed(
        "data", "prepare", text, "--out", tmp_path, "--tokenizer", "train", "--vocab-size", "300"
    )
    answer = call("eval", trained, "--data", tmp_path)
    assert answer.status == 2
    assert answer.err.startswith(f"error: the store {tmp_path} was prepared with another tokenizer")
    assert "--tokenizer bytes" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "7"), "no checkpoint 7"),
        (("--batches", "-1"), "'--batches'"),
        (("--data", "missing.txt"), "there is no 'missing.txt'"),
        (("plan.tensor=16",), "16 devices, but 8 are attached"),
        (("data.sequence_lenght=8",), "did you mean 'sequence_length'?"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    trained: Path, arguments: tuple[str, ...], message: str
) -> None:
    answer = call("eval", trained, *arguments)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err


@pytest.mark.parametrize("name", ["eval", "generate"])
def test_a_directory_without_a_run_or_a_checkpoint_is_refused(
    trained: Path, tmp_path: Path, name: str
) -> None:
    answer = call(name, tmp_path)
    assert (answer.status, answer.out) == (2, "")
    assert f"{tmp_path} is not a run directory" in answer.err
    shutil.copy(trained / "config.yaml", tmp_path)
    answer = call(name, tmp_path)
    assert (answer.status, answer.out) == (2, "")
    assert f"{tmp_path} has no good checkpoint" in answer.err
