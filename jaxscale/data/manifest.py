"""What a store says about itself. A folder without a manifest is not a store."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxscale.errors import UserError

if TYPE_CHECKING:
    import fsspec

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class SourceRecord:
    """A file that went in: bytes as stored, and their SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TokenizerRecord:
    """`spec` is "bytes" or "tokenizer.json", the copy inside the store."""

    spec: str
    fingerprint: str
    vocab_size: int
    eod_id: int


@dataclass(frozen=True)
class Options:
    """How files become documents, and documents splits: all but the tokenizer that decides tokens.

    `text_key` is the field of JSON lines and the column of Parquet that holds the text. A .txt file
    is one document, or is cut at each `document_separator`. `eval_fraction` of the text is held
    out.
    """

    text_key: str = "text"
    document_separator: str | None = None
    eval_fraction: float = 0.0


@dataclass(frozen=True)
class Manifest:
    """Checksums are SHA-256 of the little-endian contents of each array.

    `split_by` says how documents were held out: "hash" or "tail" (see `prepare`), or "none".
    """

    split: str
    split_by: str
    num_documents: int
    num_tokens: int
    num_text_bytes: int
    options: Options
    tokenizer: TokenizerRecord
    sources: tuple[SourceRecord, ...]
    checksums: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def text_key(self) -> str:
        return self.options.text_key

    @property
    def inputs(self) -> tuple[object, ...]:
        return store_inputs(self.sources, self.options, self.tokenizer.fingerprint)


def store_inputs(
    sources: Sequence[SourceRecord], options: Options, fingerprint: str
) -> tuple[object, ...]:
    """All that decides the contents of a store: equal inputs, equal stores."""
    return tuple((source.size, source.sha256) for source in sources), options, fingerprint


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Makes the folder a store, in one atomic step."""
    content = asdict(manifest)
    content["sha256"] = _checksum(content)
    temporary = folder / f"{FILE_NAME}.tmp"
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE_NAME)


def read_manifest(path: str) -> Manifest:
    """The manifest of the store at a path or URL.

    Raises UserError when it is missing, damaged, or of another version of the format.
    """
    import fsspec

    system, root = fsspec.core.url_to_fs(path)
    if not system.isfile(f"{root}/{FILE_NAME}"):
        raise UserError(f"there is no store at {path}: {_what_is_there(system, root)}")
    try:
        content = json.loads(system.cat_file(f"{root}/{FILE_NAME}"))
        recorded = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}/{FILE_NAME} is damaged ({error}): prepare it again") from error
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"the store {path} has format {content.get('format_version')}, this version of "
            f"jaxscale reads {FORMAT_VERSION}: prepare it again"
        )
    if recorded != _checksum(content):
        raise UserError(f"{path}/{FILE_NAME} does not match its checksum: prepare it again")
    return _parse(content)


def _parse(content: dict[str, Any]) -> Manifest:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest).validate_json(json.dumps(content))


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _what_is_there(system: "fsspec.AbstractFileSystem", root: str) -> str:
    if not system.isdir(root):
        return "the folder does not exist; make it with 'jaxscale data prepare'"
    names = sorted(entry.rstrip("/").rpartition("/")[2] for entry in system.ls(root, detail=False))
    if system.isfile(f"{root}/train/{FILE_NAME}"):
        return f"it holds {', '.join(names)}; did you mean {root}/train?"
    if "tokens" in names:
        return f"it has no {FILE_NAME}, so it was never finished; prepare it again"
    return f"it holds {', '.join(names[:5]) or 'nothing'}; make it with 'jaxscale data prepare'"
