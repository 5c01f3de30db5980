"""Exports to a URL hold the bytes of exports to a directory. fsspec's memory stands in for an object store: there, too,
a file is there when its upload is complete and not before."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from cli_cases import succeed
from export_cases import Arrays, contents, random_arrays, save_run
from interop_cases import WIDE

from jaxscale.checkpoint.casting import float_dtype
from jaxscale.errors import UserError
from jaxscale.interop.export_hf import export_hf
from jaxscale.interop.export_job import ExportOptions
from jaxscale.interop.hf_import import open_hf
from jaxscale.interop.layout import whole

OPTIONS = ExportOptions(piece_bytes=256, max_shard_bytes=6_000, num_threads=2)


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


@pytest.fixture
def url() -> Iterator[str]:
    yield "memory://bucket/model"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def objects(url: str) -> dict[str, bytes]:
    """Every object below a URL, by its name there."""
    system, path = fsspec.core.url_to_fs(url)
    return {name.removeprefix(f"{path}/"): system.cat_file(name) for name in system.find(path)}


def interrupt_after(num_pieces: int) -> Callable[[int], None]:
    left = iter(range(num_pieces))

    def report(_num_bytes: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return report


def test_a_store_gets_the_same_bytes(run: Path, expected: dict[str, bytes], url: str) -> None:
    assert export_hf(run, url, options=OPTIONS).complete
    assert objects(url) == expected
    done = export_hf(run, url, options=OPTIONS)  # Again.
    assert done.complete
    assert done.skipped > 100


def test_what_is_in_a_store_is_imported_from_there(run: Path, arrays: Arrays, url: str) -> None:
    printed = succeed("export", run, url, "--to", "hf", "--max-shard-size", "50KB")
    assert printed.startswith(f"{url}: ")
    back = open_hf(url)
    for path, array in arrays.items():
        np.testing.assert_array_equal(back.read(path, whole(array.shape)), array)


def test_an_interrupted_upload_leaves_no_object_and_is_gone_on_with(
    run: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Memory shows a file from its first byte; local files, as object stores do, once they are committed.
    monkeypatch.setitem(fsspec.config.conf, "file", {"auto_mkdir": True})
    url = f"file://{tmp_path}/hf"
    with pytest.raises(KeyboardInterrupt):
        export_hf(run, url, options=replace(OPTIONS, report=interrupt_after(200)))
    found = {name for name in objects(url) if not name.startswith(".export")}
    assert found
    assert all(objects(url)[name] == expected[name] for name in found)
    assert "config.json" not in found
    (tmp_path / "hf" / min(found)).write_bytes(b"changed since")
    done = export_hf(run, url, options=OPTIONS)
    assert done.complete
    assert done.skipped > 0
    assert objects(url) == expected


def test_processes_upload_files_of_their_own(
    run: Path, expected: dict[str, bytes], url: str
) -> None:
    parts = [replace(OPTIONS, process=process, num_processes=2) for process in (1, 0)]
    assert [export_hf(run, url, options=part).complete for part in parts] == [False, True]
    assert objects(url) == expected


def test_a_store_that_holds_something_else_is_refused(run: Path, url: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"is not empty \(notes.txt"):
        export_hf(run, "memory://bucket", options=OPTIONS)
    half = replace(OPTIONS, num_processes=2)
    export_hf(run, url, options=half)
    with pytest.raises(UserError, match="another export that is not finished"):
        export_hf(run, url, dtype=float_dtype("bf16"), options=half)
    with pytest.raises(UserError, match="cannot be opened"):
        export_hf(run, "nowhere://bucket/model", options=OPTIONS)


def test_a_file_with_overflows_is_not_uploaded(arrays: Arrays, url: str, tmp_path: Path) -> None:
    large = {path: array.copy() for path, array in arrays.items()}
    large["final_norm/scale"][:2] = 1e6
    run = save_run(tmp_path / "run", WIDE, large)
    fp16 = float_dtype("fp16")
    with pytest.raises(UserError, match=r"model.norm.weight: 2"):
        export_hf(run, url, dtype=fp16, options=OPTIONS)
    assert "config.json" not in objects(url)
    allowed = replace(OPTIONS, overflow="allow")
    assert export_hf(run, url, dtype=fp16, options=allowed).complete
