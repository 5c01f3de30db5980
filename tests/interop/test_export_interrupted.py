"""Exports that are killed, shared, run into a full disk or a wrong target: nothing half-written looks finished."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import file_size_limit
from export_cases import STEP, Arrays, contents, random_arrays, save_run, tensors_of
from interop_cases import WIDE

from jaxscale.checkpoint.casting import float_dtype
from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.interop import shard_writer
from jaxscale.interop.export import find_export_problems
from jaxscale.interop.export_hf import export_hf
from jaxscale.interop.export_job import ExportOptions
from jaxscale.interop.journal import FOLDER, Done, Journal
from jaxscale.interop.shard_writer import crc_of
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint

CHILD = Path(__file__).with_name("export_child.py")
OPTIONS = ExportOptions(piece_bytes=256, max_shard_bytes=6_000, num_threads=2)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return random_arrays(WIDE)


@pytest.fixture(scope="module")
def run(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("export") / "run", WIDE, arrays, plan=Plan(fsdp=8))


@pytest.fixture(scope="module")
def expected(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export that nothing happened to."""
    out = tmp_path_factory.mktemp("expected") / "hf"
    export_hf(run, out, options=OPTIONS)
    return contents(out)


def start(run: Path, out: Path, process: int = 0, num_processes: int = 1) -> subprocess.Popen[str]:
    arguments = [str(run), str(out), str(process), str(num_processes)]
    return subprocess.Popen(
        [sys.executable, str(CHILD), *arguments], stdout=subprocess.PIPE, text=True
    )


def kill_after(child: subprocess.Popen[str], num_pieces: int) -> None:
    assert child.stdout is not None
    for _ in range(num_pieces):
        assert child.stdout.readline().strip().isdecimal()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def num_pieces_of(run: Path, out: Path) -> int:
    seen: list[int] = []
    export_hf(run, out, options=replace(OPTIONS, report=seen.append))
    return len(seen)


def test_kill_9_leaves_nothing_that_looks_finished_and_the_next_run_completes(
    run: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    total = num_pieces_of(run, tmp_path / "counted")
    assert total > 100
    out, published, skipped = tmp_path / "hf", 0, 0
    for fraction in (0.1, 0.5, 0.8):
        kill_after(start(run, out), max(1, int(fraction * (total - skipped))))
        found = contents(out)
        for name, content in found.items():
            if not Path(name).name.startswith(".") and not name.startswith(FOLDER):
                assert content == expected[name], name
                published += 1
        assert "model.safetensors.index.json" not in found
        assert "config.json" not in found
        skipped = sum(len(pieces) for pieces in Journal(out, 0).done().values())
    assert published > 0  # Some file was complete, so the loop above compared something.
    assert skipped > 0
    done = export_hf(run, out, options=OPTIONS)
    assert done.complete
    assert done.skipped >= skipped
    assert contents(out) == expected


def test_a_torn_line_of_the_journal_and_a_changed_file_are_written_again(
    run: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "hf"
    partial_export(run, out, process=0)
    journal = out / FOLDER / "0.jsonl"
    journal.write_text(journal.read_text() + '{"file": "model-0000')
    finished = next(out.glob("model-*.safetensors"))
    data = bytearray(finished.read_bytes())
    data[-1] ^= 1
    finished.write_bytes(data)
    assert export_hf(run, out, options=OPTIONS).complete
    assert contents(out) == expected


def partial_export(run: Path, out: Path, *, process: int, num_processes: int = 2) -> None:
    part = replace(OPTIONS, process=process, num_processes=num_processes)
    done = export_hf(run, out, options=part)
    assert not done.complete


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_process_does_its_part_and_the_last_one_finishes(
    run: Path, expected: dict[str, bytes], tmp_path: Path, order: tuple[int, int]
) -> None:
    out = tmp_path / "hf"
    partial_export(run, out, process=order[0])
    assert not (out / "config.json").exists()
    second = export_hf(run, out, options=replace(OPTIONS, process=order[1], num_processes=2))
    assert second.complete
    assert second.skipped == 0
    assert contents(out) == expected


def test_two_processes_at_once_write_the_same_bytes(
    run: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    children = [start(run, tmp_path / "hf", process, 2) for process in range(2)]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert "complete" in "".join(outputs)
    assert contents(tmp_path / "hf") == expected
    # Neither had nothing to do.
    assert min(len(output.splitlines()) for output in outputs) > 20


def test_another_process_may_finish_the_export_first(
    run: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see that every file is there; the other writes the rest, and forgets the journals, while this one reads."""
    out, whole = tmp_path / "hf", Journal.done
    partial_export(run, out, process=1)
    files, races = {name for name in expected if name.endswith(".safetensors")}, []

    def raced(journal: Journal) -> Done:
        if files <= {path.name for path in out.iterdir()} and not races:
            races.append(journal)
            assert export_hf(run, out, options=OPTIONS).complete
        return whole(journal)

    monkeypatch.setattr(Journal, "done", raced)
    assert export_hf(run, out, options=replace(OPTIONS, num_processes=2)).complete
    assert len(races) == 1
    assert contents(out) == expected


def test_another_process_may_finish_a_shared_file_first(
    run: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have noted their pieces of it; the other gives it its name while this one reads the other's back."""
    out, races = tmp_path / "hf", list[str]()
    for process in (1, 2):  # Between two of three, a file is shared.
        partial_export(run, out, process=process, num_processes=3)

    def raced(path: Path, offset: int, num_bytes: int) -> int:
        name = path.name.removeprefix(".").removesuffix(".partial")
        noted = [journal.read_text().count(name) for journal in (out / FOLDER).glob("*.jsonl")]
        if sum(map(bool, noted)) == 2 and path.is_file():
            races.append(name)
            path.replace(out / name)
        return crc_of(path, offset, num_bytes)

    monkeypatch.setattr(shard_writer, "crc_of", raced)
    assert export_hf(run, out, options=replace(OPTIONS, num_processes=3)).complete
    assert len(races) == 1
    assert contents(out) == expected


def test_a_part_left_by_two_is_finished_by_one(
    run: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    partial_export(run, tmp_path / "hf", process=1)
    assert export_hf(run, tmp_path / "hf", options=OPTIONS).skipped > 20
    assert contents(tmp_path / "hf") == expected


def test_what_reads_back_other_than_it_was_written_is_not_finished(
    run: Path, tmp_path: Path
) -> None:
    """A disk that loses a byte: after the first piece, one of the bytes before it changes."""
    out = tmp_path / "hf"
    losses = iter([True])

    def lose(_num_bytes: int) -> None:
        if next(losses, False):
            partial = next(out.glob(".*.partial"))
            data = bytearray(partial.read_bytes())
            data[8 + int.from_bytes(data[:8], "little") + 100] ^= 1  # Behind the header.
            partial.write_bytes(data)

    options = replace(OPTIONS, report=lose, num_threads=1)
    with pytest.raises(UserError, match=r"model.embed_tokens.weight reads back from .* other than"):
        export_hf(run, out, options=options)
    assert not list(out.glob("model-00001-of-*"))
    assert "config.json" not in contents(out)


def test_running_a_finished_export_again_checks_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    export_hf(run, out, options=OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert export_hf(run, out, options=OPTIONS).complete
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    file = min(out.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    problem = f"{file.name}: model.embed_tokens.weight is not what was written"
    assert find_export_problems(out) == [problem]
    with pytest.raises(UserError, match="has changed since") as caught:
        export_hf(run, out, options=OPTIONS)
    assert problem in str(caught.value)


def test_a_target_that_holds_something_else_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty \(thesis.tex"):
        export_hf(run, tmp_path / "full", options=OPTIONS)
    assert contents(tmp_path / "full") == {"thesis.tex": b"years of work"}
    with pytest.raises(UserError, match="is a file"):
        export_hf(run, tmp_path / "full" / "thesis.tex", options=OPTIONS)
    partial_export(run, tmp_path / "begun", process=0)
    with pytest.raises(UserError, match="another export that is not finished"):
        export_hf(run, tmp_path / "begun", dtype=float_dtype("bf16"), options=OPTIONS)


def test_a_disk_that_fills_up_ends_the_export_and_the_next_run_completes(
    run: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with (
        file_size_limit(20_000),
        pytest.raises(OSError, match=r"File too large: .*model-000\d\d-of-.*partial"),
    ):
        export_hf(run, tmp_path / "hf", options=OPTIONS)
    assert "config.json" not in contents(tmp_path / "hf")
    assert export_hf(run, tmp_path / "hf", options=OPTIONS).complete
    assert contents(tmp_path / "hf") == expected


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        result = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if result.returncode:
        pytest.skip(f"mounting needs root ({result.stderr.strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    run: Path, tiny_disk: Path
) -> None:
    with pytest.raises(UserError, match=r"has no room: 0\.2 MB .* 0\.1 MB are free"):
        export_hf(run, tiny_disk / "hf", options=OPTIONS)
    assert not list(tiny_disk.rglob("*.safetensors*"))


def test_overflows_are_counted_and_refused_unless_asked_for(arrays: Arrays, tmp_path: Path) -> None:
    large = {path: array.copy() for path, array in arrays.items()}
    large["layers/mlp/up"][1, 3, 5] = 1e6
    large["layers/mlp/up"][1, 4, :2] = -1e6
    large["final_norm/scale"][0] = 70_000  # fp16 ends at 65,504.
    large["final_norm/scale"][1] = np.inf  # Was infinite before: nothing is lost.
    run = save_run(tmp_path / "run", WIDE, large)
    before, out, fp16 = contents(run), tmp_path / "hf", float_dtype("fp16")
    with pytest.raises(UserError) as caught:
        export_hf(run, out, dtype=fp16, options=OPTIONS)
    assert "4 values of" in str(caught.value)
    assert "model.layers.1.mlp.up_proj.weight: 3" in str(caught.value)
    assert "model.norm.weight: 1" in str(caught.value)
    assert "--allow-overflow" in str(caught.value)
    assert "config.json" not in contents(out)
    assert contents(run) == before
    done = export_hf(run, out, dtype=fp16, options=replace(OPTIONS, overflow="allow"))
    assert done.complete
    assert done.skipped > 0  # The files without overflows were good.
    up = tensors_of(out)["model.layers.1.mlp.up_proj.weight"]
    assert (up[5, 3], up[0, 4], up[1, 4]) == (np.inf, -np.inf, -np.inf)
    assert np.isinf(up).sum() == 3


def test_what_bfloat16_can_hold_is_no_overflow(arrays: Arrays, tmp_path: Path) -> None:
    large = arrays | {"final_norm/scale": np.full(WIDE.embed_dim or 0, 3e38, np.float32)}
    run = save_run(tmp_path / "run", WIDE, large)
    assert export_hf(run, tmp_path / "hf", dtype=float_dtype("bf16"), options=OPTIONS).complete


def test_a_damaged_checkpoint_is_refused_with_the_file_named(
    arrays: Arrays, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", WIDE, arrays)
    data = max((run / "checkpoints").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match="is damaged") as caught:
        export_hf(run, tmp_path / "hf", options=OPTIONS)
    assert data.name in str(caught.value)
    assert not list((tmp_path / "hf").glob("*.safetensors"))


def test_a_checkpoint_of_another_model_is_refused_with_the_parameters_named(
    arrays: Arrays, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", WIDE, arrays)
    path = run / "checkpoints" / str(STEP) / "metadata.json"
    document = json.loads(path.read_text())
    document["metadata"]["config"]["model"]["mlp_dim"] = 48
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"params/layers/mlp/up is \[2, 32, 40\], the model has"):
        export_hf(run, tmp_path / "hf", options=replace(OPTIONS, integrity="skip"))


def test_pieces_cover_the_description(run: Path) -> None:
    """The fixture's sizes, on which the counts above rest."""
    description = blueprint(model_builder(WIDE)).description
    assert sum(spec.num_bytes for spec in description.values()) > 100 * OPTIONS.piece_bytes
