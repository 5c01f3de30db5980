import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from jaxscale.data.manifest import Options
from jaxscale.data.sources import find_files, hash_file, read_documents
from jaxscale.errors import UserError

TEXTS = ["First text.", "Second,\nof two lines — and a dash.", "Third."]


def jsonl(texts: list[str] = TEXTS, key: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, key: t}) + "\n" for i, t in enumerate(texts)).encode()


def as_parquet(column: str = "text") -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"id": [0, 1, 2], column: TEXTS}), buffer, row_group_size=2)
    return buffer.getvalue()


def two_frames(content: bytes) -> bytes:
    """Concatenated frames are one file, as `cat a.zst b.zst` makes them."""
    return b"".join(zstandard.compress(half) for half in (content[:30], content[30:]))


CONTENTS = {
    "a.jsonl": jsonl(),
    "a.jsonl.gz": gzip.compress(jsonl()),
    "a.jsonl.zst": two_frames(jsonl()),
    "a.parquet": as_parquet(),
    "a.txt": "@@".join(TEXTS).encode(),
}


def read(*sources: str, **options: str) -> list[str]:
    files = find_files(sources)
    return [text for file in files for text in read_documents(file, Options(**options))]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_reads_from_disk_and_from_memory(
    name: str, tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    (tmp_path / name).write_bytes(CONTENTS[name])
    memory.pipe_file(f"/bucket/{name}", CONTENTS[name])
    for source in (str(tmp_path / name), f"memory://bucket/{name}", f"memory://bucket/*{name[1:]}"):
        assert read(source, document_separator="@@") == TEXTS
        assert [file.name for file in find_files([source])] == [name]


def test_a_text_file_is_one_document_unless_separated(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\n\n\n two\r\nx\n\n\n  \n\n\n".encode())
    assert read(str(tmp_path)) == ["one\n\n\n two\r\nx\n\n\n  \n\n\n"]
    assert read(str(tmp_path), document_separator="\n\n\n") == ["one", " two\r\nx"]


def test_the_text_key_chooses_the_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(key="body") + b"\n  \n")
    (tmp_path / "b.parquet").write_bytes(as_parquet("body"))
    assert read(str(tmp_path), text_key="body") == TEXTS * 2


def test_files_come_in_the_order_given_sorted_within_and_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "notes.md", ".hidden/x.txt", "_tmp.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [f.name for f in find_files([str(tmp_path)])] == ["a.txt", "b.txt", "deep/er/c.txt"]
    chosen = [str(tmp_path / "b.txt"), str(tmp_path / "*.txt"), str(tmp_path / "**/c.txt")]
    assert [f.name for f in find_files(chosen)] == ["b.txt", "_tmp.txt", "a.txt", "c.txt"]


def test_the_hash_is_of_the_stored_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (file,) = find_files([str(tmp_path)])
    # NIST's example for SHA-256.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(file) == (3, expected)


BAD_CONTENTS = {
    "empty.txt": (b"", "empty.txt has no documents"),
    "blank.txt": (b" \n\t\n", "blank.txt has no documents"),
    "empty.jsonl": (b"\n\n", "empty.jsonl has no documents"),
    "a.jsonl": (jsonl() + b"\n{'text': 1}\n", "a.jsonl, line 5 is not JSON: .* at column 2"),
    "list.jsonl": (b"[1]\n", "line 1 is a JSON list, not an object"),
    "key.jsonl": (jsonl(key="body"), "line 1 has no 'text': it has 'id', 'body'; set text_key"),
    "number.jsonl": (b'{"text": 5}', "line 1: 'text' is int, not text"),
    "null.jsonl": (b'{"text": null}', "line 1: 'text' is NoneType, not text"),
    "half.jsonl": (b'{"text": "a\\ud800"}', "line 1: character 1 is a lone surrogate"),
    "latin.txt": ("né".encode("latin-1"), "latin.txt is not UTF-8: byte 1 is 0xe9"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}', "is not UTF-8: byte 24 is 0xe9"),
    "cut.jsonl.gz": (gzip.compress(jsonl())[:-12], "not a whole gzip file"),
    "not.jsonl.gz": (jsonl(), "not a whole gzip file"),
    "not.jsonl.zst": (jsonl(), "not a whole zstd file"),
    "cut.jsonl.zst": (zstandard.compress(jsonl())[:-6], "not a whole zstd file"),
    "not.parquet": (jsonl(), "not a Parquet file"),
    "key.parquet": (as_parquet("body"), "has no 'text': it has 'id', 'body'"),
}


@pytest.mark.parametrize("name", BAD_CONTENTS)
def test_a_file_that_cannot_be_read_says_where(name: str, tmp_path: Path) -> None:
    content, message = BAD_CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / name))


def test_a_parquet_file_with_a_missing_text_says_which_row(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2: 'text' is NoneType"):
        read(str(tmp_path))


def test_a_missing_file_names_its_neighbors(tmp_path: Path) -> None:
    for name in ("moby-dick.txt", "zzz.txt"):
        (tmp_path / name).write_text("text")
    with pytest.raises(UserError, match=r"there is no .*moby_dick.*did you mean moby-dick.txt"):
        find_files([str(tmp_path / "moby_dick.txt")])
    with pytest.raises(UserError, match=r"that folder holds moby-dick.txt, zzz.txt"):
        find_files([str(tmp_path / "qqqqqqqq")])
    with pytest.raises(UserError, match=r"nor the folder '.*nowhere'"):
        find_files([str(tmp_path / "nowhere" / "a.txt")])
    with pytest.raises(UserError, match=r"there is no .*\*\.jsonl"):
        find_files([str(tmp_path / "*.jsonl")])


def test_unknown_suffixes_list_the_known(tmp_path: Path) -> None:
    known = re.escape(".txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet")
    (tmp_path / "a.csv").write_text("text")
    with pytest.raises(UserError, match=rf"a\.csv has a suffix that is not known: .*{known}"):
        find_files([str(tmp_path / "a.csv")])
    with pytest.raises(UserError, match=rf"nothing to read: it holds a\.csv; .*{known}"):
        find_files([str(tmp_path)])
    (tmp_path / "a.csv").unlink()
    with pytest.raises(UserError, match="it holds no files"):
        find_files([str(tmp_path)])


def test_unknown_places_and_no_sources_are_errors() -> None:
    with pytest.raises(UserError, match=r"'nosuch://a\.txt' cannot be read"):
        find_files(["nosuch://a.txt"])
    with pytest.raises(UserError, match="no sources"):
        find_files([])
