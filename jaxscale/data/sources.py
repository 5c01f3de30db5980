"""Documents out of text files, wherever they are."""

import difflib
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from jaxscale.data.manifest import Options
from jaxscale.errors import UserError

if TYPE_CHECKING:
    import fsspec


BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file. `name` is what it is called relative to what the user gave: no machine's paths."""

    url: str
    name: str

    @property
    def suffix(self) -> str:
        return known_suffix(self.name) or ""


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """The files that the paths, URLs, folders and globs mean: in the order given, sorted in each.

    Folders are searched to the bottom for files that can be read; hidden ones are left out.
    Raises UserError for what does not exist and for suffixes that cannot be read.
    """
    if not sources:
        raise UserError("no sources were given: name files, folders or globs of text")
    found = {file.url: file for source in sources for file in _expand(source)}
    return list(found.values())


def read_documents(file: SourceFile, options: Options) -> Iterator[str]:
    """The documents of a file, in order; blank ones are left out.

    Raises UserError, with the file and the line or byte, for text that cannot be read, and when
    there is no document at all.
    """
    empty = True
    with _open(file.url) as stream:
        for text in READERS[file.suffix](stream, file, options):
            if text.strip():
                empty = False
                yield text
    if empty:
        raise UserError(f"{file.url} has no documents: it is empty or blank")


def hash_file(file: SourceFile) -> tuple[int, str]:
    """Size in bytes and SHA-256, in hex, of the file as it is stored."""
    size, digest = 0, hashlib.sha256()
    with _open(file.url) as stream:
        while block := stream.read(BLOCK_BYTES):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def known_suffix(name: str) -> str | None:
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), None)


def _expand(source: str) -> list[SourceFile]:
    system, path = _locate(source)
    if system.isfile(path):
        return _readable(system, [(path, _base(path))])
    if system.isdir(path):
        return _in_folder(system, path, source)
    matches = sorted(system.glob(path)) if any(c in path for c in "*?[") else []
    files = [match for match in matches if system.isfile(match)]
    if not files:
        raise UserError(f"there is no {source!r}{_nearest(system, path)}")
    return _readable(system, [(match, _base(match)) for match in files])


def _in_folder(system: Any, folder: str, source: str) -> list[SourceFile]:
    root = folder.rstrip("/")
    names = [path.removeprefix(root).lstrip("/") for path in sorted(system.find(root))]
    visible = [name for name in names if not any(part[0] in "._" for part in name.split("/"))]
    readable = [name for name in visible if known_suffix(name)]
    if not readable:
        raise UserError(
            f"the folder {source!r} has nothing to read: it holds "
            f"{', '.join(visible[:5]) or 'no files'}; known suffixes are {', '.join(READERS)}"
        )
    return _readable(system, [(f"{root}/{name}", name) for name in readable])


def _readable(system: Any, files: list[tuple[str, str]]) -> list[SourceFile]:
    for path, name in files:
        if known_suffix(name) is None:
            raise UserError(
                f"{path} has a suffix that is not known: known are {', '.join(READERS)}"
            )
    return [SourceFile(str(system.unstrip_protocol(path)), name) for path, name in files]


def _nearest(system: Any, path: str) -> str:
    """The names beside `path` that are most like it, as the end of a sentence."""
    parent, _, name = path.rstrip("/").rpartition("/")
    if not system.isdir(parent or "/"):
        return f" (nor the folder {parent!r})"
    names = [_base(entry) for entry in system.ls(parent or "/", detail=False)]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = close or sorted(names)[:5]
    label = "did you mean" if close else "that folder holds"
    return f": {label} {', '.join(listed)}?" if listed else ": that folder is empty"


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _locate(source: str) -> tuple["fsspec.AbstractFileSystem", str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(source)
    except ImportError as error:
        raise UserError(f"reading {source!r} needs another package: {error}") from error
    except ValueError as error:
        raise UserError(f"{source!r} cannot be read: {error}") from error
    return system, str(path)


def _open(url: str) -> IO[bytes]:
    system, path = _locate(url)
    stream: IO[bytes] = system.open(path, "rb")
    return stream


def _read_txt(stream: IO[bytes], file: SourceFile, options: Options) -> Iterator[str]:
    text = _decode(stream.read(), file.url, offset=0).removeprefix("\ufeff")
    separator = options.document_separator
    yield from text.split(separator) if separator else [text]


def _read_jsonl(stream: Iterable[bytes], file: SourceFile, options: Options) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        if line.strip():
            place = f"{file.url}, line {number}"
            yield _text_of(_parse_line(line, file, number, offset), place, options.text_key)
        offset += len(line)


def _read_gzip(stream: IO[bytes], file: SourceFile, options: Options) -> Iterator[str]:
    try:
        yield from _read_jsonl(gzip.GzipFile(fileobj=stream), file, options)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file.url} is not a whole gzip file: {error}") from error


def _read_zstd(stream: IO[bytes], file: SourceFile, options: Options) -> Iterator[str]:
    import zstandard

    try:
        yield from _read_jsonl(_lines(_unpack_zstd(stream, file)), file, options)
    except zstandard.ZstdError as error:
        raise UserError(f"{file.url} is not a whole zstd file: {error}") from error


def _unpack_zstd(stream: IO[bytes], file: SourceFile) -> Iterator[bytes]:
    """Frame by frame: the reader of the library takes a file that was cut off for its end."""
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    whole = True
    while block := stream.read(BLOCK_BYTES):
        while block:
            yield frame.decompress(block)
            block, whole = frame.unused_data, frame.eof
            if whole:
                frame = zstandard.ZstdDecompressor().decompressobj()
    if not whole:
        raise UserError(f"{file.url} is not a whole zstd file: its end is missing")


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    yield rest


def _read_parquet(stream: IO[bytes], file: SourceFile, options: Options) -> Iterator[str]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install 'jaxscale[parquet]'") from error
    try:
        table = parquet.ParquetFile(stream)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file.url} is not a Parquet file: {error}") from error
    _check_key(options.text_key, table.schema_arrow.names, file.url)
    row = 0
    for batch in table.iter_batches(columns=[options.text_key]):
        for value in batch.column(0).to_pylist():
            row += 1
            yield _checked(value, f"{file.url}, row {row}", options.text_key)


Reader = Callable[[IO[bytes], SourceFile, Options], Iterator[str]]
READERS: dict[str, Reader] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_gzip,
    ".jsonl.zst": _read_zstd,
    ".parquet": _read_parquet,
}


def _parse_line(line: bytes, file: SourceFile, number: int, offset: int) -> object:
    try:
        return json.loads(_decode(line, file.url, offset))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file.url}, line {number} is not JSON: {error.msg} at column {error.colno}"
        ) from error


def _text_of(record: object, place: str, text_key: str) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{place} is a JSON {type(record).__name__}, not an object with a text")
    _check_key(text_key, list(record), place)
    return _checked(record[text_key], place, text_key)


def _check_key(text_key: str, keys: list[str], place: str) -> None:
    if text_key not in keys:
        raise UserError(
            f"{place} has no {text_key!r}: it has {', '.join(map(repr, keys)) or 'nothing'}; "
            f"set text_key to the one that holds the text"
        )


def _checked(value: object, place: str, text_key: str) -> str:
    """The value, if it is text that UTF-8 can hold (JSON can spell lone surrogates)."""
    if not isinstance(value, str):
        raise UserError(f"{place}: {text_key!r} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: character {error.start} is a lone surrogate, which is not text"
        ) from error
    return value


def _decode(data: bytes, url: str, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{url} is not UTF-8: byte {offset + error.start} is 0x{data[error.start]:02x}; "
            f"convert it first (iconv -t utf-8)"
        ) from error
