"""`jaxscale checkpoint`: what it prints, what it makes, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import call, succeed

from jaxscale.checkpoint.places import open_place
from jaxscale.checkpoint.stored import StoredArrays

STEP = 200
GREEDY = ("--prompt", "The whale ", "--temperature", "0", "--tokens", "4", "plan.data=1")


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_ls_has_a_line_a_checkpoint(trained: Path) -> None:
    listed = json.loads(succeed("checkpoint", "ls", trained, "--json"))
    assert [one["step"] for one in listed] == [STEP]
    groups = {group["name"]: group for group in listed[0]["groups"]}
    # AdamW keeps two moments of each parameter, and two counters of four bytes.
    assert groups["optimizer"]["bytes"] == 2 * groups["params"]["bytes"] + 8
    assert groups["params"]["dtypes"] == ["float32"]
    assert f"{STEP}" in succeed("checkpoint", "ls", trained / "checkpoints")


def test_show_has_the_tree_the_model_and_the_plan(trained: Path) -> None:
    shown = json.loads(succeed("checkpoint", "show", trained, "--json"))
    table = next(a for a in shown["arrays"] if a["path"] == "params/embedding/table")
    # The run's plan was data=8, whose replicas share the writing of each array.
    assert (table["shape"], table["dtype"], table["bytes"]) == ([300, 32], "float32", 38_400)
    assert table["blocks"] in ([300, 4], [300, 32])
    assert shown["metadata"]["plan"]["data"] == 8
    text = succeed("checkpoint", "show", trained, "--step", str(STEP))
    for words in ("300 x 32", "llama3", "data 8", f"step {STEP}"):
        assert words in text


def test_verify_names_the_damaged_file_and_fails(trained: Path, tmp_path: Path) -> None:
    assert succeed("checkpoint", "verify", trained).endswith(f"/{STEP}: good\n")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    damaged = max((run / "checkpoints").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    answer = call("checkpoint", "verify", run / "checkpoints" / str(STEP))
    assert answer.status == 2
    assert "DAMAGED" in answer.out
    assert damaged.name in answer.out
    answer = call("checkpoint", "verify", run, "--json")
    assert answer.status == 2
    assert damaged.name in json.loads(answer.out)[str(STEP)][0]["file"]


@pytest.mark.parametrize(
    "arguments", [("reshard", "--chunk-size", "4KiB", "--file-size", "64KB"), ("prune",)]
)
def test_a_changed_copy_says_what_the_run_says(
    trained: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    before = files(trained)
    name, *options = arguments
    out = tmp_path / "copy"
    assert str(out) in succeed("checkpoint", name, trained, out, *options)
    assert files(trained) == before
    if name == "prune":  # Everything that a run needs but to be trained on.
        assert succeed("generate", out, *GREEDY) == succeed("generate", trained, *GREEDY)
    groups = json.loads(succeed("checkpoint", "ls", out, "--json"))[0]["groups"]
    assert ("optimizer" in {group["name"] for group in groups}) == (name == "reshard")
    answer = call("checkpoint", name, trained, out)
    assert answer.status == 2
    assert "already" in answer.err


def test_pruning_in_place_asks_for_it(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    answer = call("checkpoint", "prune", run)
    assert (answer.status, "--in-place" in answer.err) == (2, True)
    assert call("checkpoint", "prune", run, tmp_path / "out", "--in-place").status == 2
    succeed("checkpoint", "prune", run, "--in-place")
    groups = json.loads(succeed("checkpoint", "ls", run, "--json"))[0]["groups"]
    assert {group["name"] for group in groups} == {"params", "step"}
    assert succeed("checkpoint", "verify", run).endswith(": good\n")


def test_convert_halves_the_floats(trained: Path, tmp_path: Path) -> None:
    succeed("checkpoint", "convert", trained, tmp_path / "half", "--dtype", "bf16")
    groups = json.loads(succeed("checkpoint", "ls", tmp_path / "half", "--json"))[0]["groups"]
    params = next(group for group in groups if group["name"] == "params")
    assert (params["dtypes"], params["bytes"]) == (["bfloat16"], 2 * 38_432)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ls", "{missing}"), "there is no directory"),
        (("show", "{run}", "--step", "3"), "no checkpoint 3"),
        (("show", "{run}/checkpoints/200", "--step", "3"), "leave out --step"),
        (("verify", "{empty}"), "there is no checkpoint in"),
        (("convert", "{run}", "{new}", "--dtype", "int8"), "'int8' is not a dtype"),
        (("reshard", "{run}", "{new}", "--chunk-size", "lots"), "--chunk-size 'lots'"),
        (("reshard", "{run}", "{full}"), "has no checkpoints"),
    ],
)
def test_bad_input_is_one_message(
    trained: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    places = {name: tmp_path / name for name in ("missing", "empty", "full", "new")}
    words = [word.format(run=trained, **places) for word in arguments]
    answer = call("checkpoint", *words)
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert not (tmp_path / "new").exists()


def listed(location: Path | str) -> list[dict[str, Any]]:
    return json.loads(succeed("checkpoint", "ls", location, "--json"))


def assert_same_arrays(one: StoredArrays, other: StoredArrays) -> None:
    assert one.entries == other.entries
    for path, entry in one.entries.items():
        box = tuple(slice(0, size) for size in entry.shape)
        np.testing.assert_array_equal(one.read(path, box), other.read(path, box), err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_run_with_its_checkpoints_in_a_store_is_resumed_from_there_by_any_machine(
    config: Path, store: str, tmp_path: Path
) -> None:
    # What is learned in a step does not depend on how many there are to be.
    constant = ("training.schedule.name=constant", "training.schedule.warmup_steps=0")

    def train(run: Path, steps: int) -> str:
        there = (f"checkpoint.directory={store}", "checkpoint.every=2")
        last = f"training.steps={steps}"
        return succeed("train", config, *there, *constant, last, "--run-dir", run)

    train(tmp_path / "first", 4)
    assert not (tmp_path / "first" / "checkpoints").exists()
    assert [one["step"] for one in listed(tmp_path / "first")] == [2, 4]
    said = train(tmp_path / "second", 5)
    assert "resuming behind step 4" in said
    assert [one["step"] for one in listed(store)] == [2, 4, 5]
    whole = tmp_path / "whole"
    succeed("train", config, *constant, "training.steps=5", "--run-dir", whole)
    assert_same_arrays(StoredArrays(open_place(store) / "5"), StoredArrays(whole / "checkpoints/5"))
    assert "The whale" in succeed("generate", tmp_path / "second", *GREEDY)
    succeed("checkpoint", "prune", tmp_path / "second", tmp_path / "pruned")
    assert [one["step"] for one in listed(tmp_path / "pruned")] == [5]


def test_a_run_directory_itself_is_local(config: Path) -> None:
    answer = call("train", config, "--run-dir", "gs://bucket/run")
    assert answer.status == 2
    assert "--run-dir gs://bucket/run" in answer.err
    assert "checkpoint.directory=gs://bucket/run" in answer.err
