"""Exports to object stores, imports from and to them, against servers that speak S3 and GCS."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import call, succeed
from export_cases import STEP, Arrays, contents, random_arrays, save_run
from fsspec.spec import AbstractBufferedFile
from interop_cases import WIDE, random_tensors, write_hf
from object_stores import copy_up, objects, put

from jaxscale.checkpoint.casting import float_dtype
from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.interop import remote_export
from jaxscale.interop.export_hf import export_hf
from jaxscale.interop.export_job import ExportOptions
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.layout import whole
from jaxscale.interop.pretrained import initial_params, with_pretrained
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place as place_on

OPTIONS = ExportOptions(piece_bytes=4096, max_shard_bytes=12_000, num_threads=2)
# Where nothing depends on which store it is: the quicker server.
ONE_STORE = pytest.mark.parametrize("store", ["gs"], indirect=True)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return random_arrays(WIDE)


@pytest.fixture(scope="module")
def run(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("export") / "run", WIDE, arrays)


@pytest.fixture(scope="module")
def expected(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export to a directory."""
    out = tmp_path_factory.mktemp("expected") / "hf"
    export_hf(run, out, options=OPTIONS)
    return contents(out)


def interrupt_after(num_pieces: int) -> Callable[[int], None]:
    left = iter(range(num_pieces))

    def report(_num_bytes: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return report


def test_a_store_gets_the_same_bytes(run: Path, expected: dict[str, bytes], store: str) -> None:
    assert export_hf(run, store, options=OPTIONS).complete
    assert objects(store) == expected
    done = export_hf(run, store, options=OPTIONS)  # Again.
    assert done.complete
    assert done.skipped > 20


@ONE_STORE
@pytest.mark.parametrize("moment", ["_begun", "_noted"])
def test_another_process_may_finish_the_export_first(
    run: Path,
    expected: dict[str, bytes],
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """While this one begins, or when it sees that every file is there: the notes are gone, and nothing is missing."""
    files = {name for name in expected if name.endswith(".safetensors")}
    real, races = getattr(remote_export, moment), list[str]()

    def raced(*arguments: Any) -> Any:
        if not races and (moment == "_begun" or files <= objects(store).keys()):
            races.append(moment)
            assert export_hf(run, store, options=OPTIONS).complete
        return real(*arguments)

    monkeypatch.setattr(remote_export, moment, raced)
    if moment == "_noted":
        assert not export_hf(
            run, store, options=replace(OPTIONS, process=1, num_processes=2)
        ).complete
    assert export_hf(run, store, options=replace(OPTIONS, num_processes=2)).complete
    assert races == [moment]
    assert objects(store) == expected


def test_what_is_in_a_store_is_imported_from_there(run: Path, arrays: Arrays, store: str) -> None:
    printed = succeed("export", run, store, "--to", "hf", "--max-shard-size", "50KB")
    assert printed.startswith(f"{store}: ")
    back = open_hf(store)
    for path, array in arrays.items():
        np.testing.assert_array_equal(back.read(path, whole(array.shape)), array)


def test_an_interrupted_upload_leaves_no_object_and_is_gone_on_with(
    run: Path, expected: dict[str, bytes], store: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_hf(run, store, options=replace(OPTIONS, report=interrupt_after(15)))
    found = {name for name in objects(store) if not name.startswith(".export")}
    assert found
    assert all(objects(store)[name] == expected[name] for name in found)
    assert "config.json" not in found
    changed = min(found)
    put(f"{store}/{changed}", bytes(reversed(expected[changed])))
    done = export_hf(run, store, options=OPTIONS)
    assert done.complete
    assert done.skipped > 0
    assert objects(store) == expected


@ONE_STORE
def test_a_finished_export_that_has_lost_a_file_is_not_called_finished(
    run: Path, store: str
) -> None:
    name = export_hf(run, store, options=OPTIONS).files[3]
    put(f"{store}/{name}", b"short")
    with pytest.raises(UserError, match=f"{name} is gone or has another size"):
        export_hf(run, store, options=OPTIONS)


@ONE_STORE
def test_what_does_not_read_back_as_it_was_written_is_no_export(
    run: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = AbstractBufferedFile.write

    def garble(file: AbstractBufferedFile, data: bytes) -> int:
        return int(write(file, data if len(data) < 1000 else data[:-1] + bytes([data[-1] ^ 1])))

    monkeypatch.setattr(AbstractBufferedFile, "write", garble)
    with pytest.raises(UserError, match=r"reads back from .* other than it was written"):
        export_hf(run, store, options=OPTIONS)
    assert "config.json" not in objects(store)


@ONE_STORE
def test_processes_upload_files_of_their_own(
    run: Path, expected: dict[str, bytes], store: str
) -> None:
    parts = [replace(OPTIONS, process=process, num_processes=2) for process in (1, 0)]
    assert [export_hf(run, store, options=part).complete for part in parts] == [False, True]
    assert objects(store) == expected


@ONE_STORE
def test_a_store_that_holds_something_else_is_refused(run: Path, store: str) -> None:
    put(f"{store}/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"is not empty \(notes.txt\)"):
        export_hf(run, store, options=OPTIONS)
    store = f"{store}/hf"
    half = replace(OPTIONS, num_processes=2)
    export_hf(run, store, options=half)
    with pytest.raises(UserError, match="another export that is not finished"):
        export_hf(run, store, dtype=float_dtype("bf16"), options=half)
    with pytest.raises(UserError, match="cannot be opened"):
        export_hf(run, "nowhere://bucket/model", options=OPTIONS)


@ONE_STORE
def test_a_file_with_overflows_is_not_uploaded(arrays: Arrays, store: str, tmp_path: Path) -> None:
    large = {path: array.copy() for path, array in arrays.items()}
    large["final_norm/scale"][:2] = 1e6
    run = save_run(tmp_path / "run", WIDE, large)
    fp16 = float_dtype("fp16")
    with pytest.raises(UserError, match=r"model.norm.weight: 2"):
        export_hf(run, store, dtype=fp16, options=OPTIONS)
    assert "config.json" not in objects(store)
    allowed = replace(OPTIONS, overflow="allow")
    assert export_hf(run, store, dtype=fp16, options=allowed).complete


def test_a_run_in_a_store_is_exported_from_there(
    run: Path, expected: dict[str, bytes], store: str, tmp_path: Path
) -> None:
    copy_up(run, f"{store}/run")
    export_hf(f"{store}/run", tmp_path / "hf", options=OPTIONS)
    assert contents(tmp_path / "hf") == expected
    export_hf(f"{store}/run/checkpoints/{STEP}", f"{store}/hf", options=OPTIONS)
    assert objects(f"{store}/hf") == expected


def test_an_import_into_a_store_is_a_run_that_others_start_from(store: str, tmp_path: Path) -> None:
    tensors = write_hf(tmp_path / "hf")
    copy_up(tmp_path / "hf", f"{store}/hf")
    succeed("import", "hf", f"{store}/hf", f"{store}/run")
    listed = json.loads(succeed("checkpoint", "ls", f"{store}/run", "--json"))
    assert [one["step"] for one in listed] == [0]
    config = tmp_path / "tune.yaml"
    for place in ("hf", "run"):
        config.write_text(
            f"model: {{init_from: {store}/{place}}}\ntraining: {{steps: 1, global_batch: 8}}\n"
        )
        filled = with_pretrained(load_config(config))
        assert filled.data.tokenizer.startswith(store)
        model = blueprint(model_builder(filled.model))
        plan = Plan(fsdp=4, tensor=2)
        placement = place_on(plan, make_mesh(plan), model.description)
        found = initial_params(filled.model, model, placement)
        table = np.asarray(found["embedding/table"])
        np.testing.assert_array_equal(table, tensors["model.embed_tokens.weight"])
    answer = call("import", "hf", f"{store}/hf", f"{store}/run")
    assert answer.status == 2
    assert f"{store}/run is not empty" in answer.err


@ONE_STORE
def test_a_damaged_import_leaves_nothing_in_the_store(store: str, tmp_path: Path) -> None:
    tensors = random_tensors(WIDE)
    tensors["lm_head.weight"][3, 3] = np.nan
    write_hf(tmp_path / "hf", tensors=tensors)
    answer = call("import", "hf", tmp_path / "hf", f"{store}/run")
    assert answer.status == 2
    assert "lm_head.weight has 1 values" in answer.err
    assert objects(store) == {}


def test_commands_about_checkpoints_take_urls(run: Path, store: str) -> None:
    copy_up(run, f"{store}/run")
    assert (
        succeed("checkpoint", "verify", f"{store}/run") == f"{store}/run/checkpoints/{STEP}: good\n"
    )
    shown = json.loads(succeed("checkpoint", "show", f"{store}/run/checkpoints/{STEP}", "--json"))
    assert shown["metadata"]["config"]["name"] == "tiny"
    succeed("checkpoint", "prune", f"{store}/run", f"{store}/pruned")
    succeed("checkpoint", "convert", f"{store}/run", f"{store}/half", "--dtype", "bf16")
    succeed("checkpoint", "reshard", f"{store}/run", f"{store}/other", "--chunk-size", "1KiB")
    (pruned,) = json.loads(succeed("checkpoint", "ls", f"{store}/pruned", "--json"))
    assert {group["name"] for group in pruned["groups"]} == {"params", "step"}
    assert "config.yaml" in objects(f"{store}/pruned")
    half = json.loads(succeed("checkpoint", "show", f"{store}/half", "--json"))
    assert {array["dtype"] for array in half["arrays"]} == {"bfloat16", "int32"}
    other = json.loads(succeed("checkpoint", "show", f"{store}/other", "--json"))
    assert any(array["blocks"] != array["shape"] for array in other["arrays"])
    put(f"{store}/run/checkpoints/{STEP}/metadata.json", b"{}")
    answer = call("checkpoint", "verify", f"{store}/run")
    assert (answer.status, "metadata.json" in answer.out) == (2, True)
    answer = call("checkpoint", "prune", f"{store}/pruned", "--in-place")
    assert (answer.status, "cannot put one checkpoint" in answer.err) == (2, True)
    answer = call("checkpoint", "ls", f"{store}/nowhere")
    assert (answer.status, answer.err) == (2, f"error: there is no directory {store}/nowhere\n")


@ONE_STORE
def test_a_file_that_has_become_shorter_is_named(store: str, tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    copy_up(tmp_path / "hf", f"{store}/hf")
    source = open_hf(f"{store}/hf")
    put(f"{store}/hf/model.safetensors", objects(f"{store}/hf")["model.safetensors"][:-4])
    with pytest.raises(UserError, match=r"hf/model.safetensors ends before byte"):
        source.read("final_norm/scale", (slice(0, 32),))
