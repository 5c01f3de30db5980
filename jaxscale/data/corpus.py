"""A `data:` section as what training reads: a mixture, an evaluation store, and their tokenizer."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxscale.config.data_section import DataSection
from jaxscale.config.data_section import Source as SourceSection
from jaxscale.data.manifest import FILE_NAME, Options
from jaxscale.data.mixture import Mixture, Source
from jaxscale.data.prepare import Prepared, Progress, prepare
from jaxscale.data.sources import find_files, hash_file, read_documents
from jaxscale.data.splits import EVAL, TRAIN
from jaxscale.data.store import Store, check_tokenizer
from jaxscale.data.tokenizers import Tokenizer, load_tokenizer, train_bpe
from jaxscale.errors import UserError

Report = Callable[[Progress], None]

# Enough text for a BPE of any usual size; more only takes longer.
_TOKENIZER_CHARACTERS = 200_000_000


@dataclass(frozen=True)
class Corpus:
    """eval: the first source's held-out part, or the store of `data.eval`; None if nothing is held out."""

    train: Mixture
    eval: Store | None
    tokenizer: Tokenizer


def open_corpus(section: DataSection, report: Report | None = None) -> Corpus:
    """The stores of a section, prepared where they are not yet.

    A source may be a prepared store (or the folder that `data prepare` wrote), or text, which is prepared into
    `section.store`. Raises UserError for sources that cannot be read or that differ in their tokenizer.
    """
    if not section.train:
        raise UserError("data.train names no source: give a file, a directory or a prepared store")
    tokenizer = make_tokenizer(section)
    prepared = [_prepared(source.path, section, tokenizer, report) for source in section.train]
    sources = zip(section.train, prepared, strict=True)
    mixture = Mixture(tuple(Source(one.path, made.train, one.weight) for one, made in sources))
    return Corpus(mixture, _eval_store(section, prepared, tokenizer, report), tokenizer)


def is_store(path: str) -> bool:
    """Whether `path` is a token store, or the folder of a training and an evaluation store."""
    return any((Path(path) / part / FILE_NAME).is_file() for part in ("", TRAIN))


def open_prepared(path: str) -> Prepared:
    """The stores at a path for which `is_store` holds."""
    folder = Path(path)
    if (folder / FILE_NAME).is_file():
        return Prepared(Store.open(folder), None, reused=True)
    held_out = Store.open(folder / EVAL) if (folder / EVAL / FILE_NAME).is_file() else None
    return Prepared(Store.open(folder / TRAIN), held_out, reused=True)


def make_tokenizer(section: DataSection) -> Tokenizer:
    """The tokenizer that a section names; with `train`, trained on its text once and kept in `section.store`.

    Where every source is a prepared store, `train` means the tokenizer that the first one holds.
    """
    if section.tokenizer != "train":
        return load_tokenizer(section.tokenizer)
    texts = [source for source in section.train if not is_store(source.path)]
    if not texts:
        return open_prepared(section.train[0].path).train.tokenizer()
    folder = Path(section.store) / f"tokenizer-{_digest(section, texts)}"
    if not folder.is_dir():
        _save_whole(train_bpe(_documents(section, texts), section.tokenizer_vocab_size), folder)
    return load_tokenizer(str(folder))


def _save_whole(tokenizer: Tokenizer, folder: Path) -> None:
    """Under its name it is complete: a run killed while saving leaves a folder that nobody reads."""
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    unfinished.mkdir(parents=True)
    tokenizer.save(unfinished)
    unfinished.rename(folder)


def _documents(section: DataSection, sources: list[SourceSection]) -> Iterator[str]:
    budget = _TOKENIZER_CHARACTERS
    options = Options(section.text_key, section.document_separator, section.eval_fraction)
    for file in find_files([source.path for source in sources]):
        for text in read_documents(file, options):
            yield text
            budget -= len(text)
            if budget <= 0:
                return


def _prepared(
    path: str, section: DataSection, tokenizer: Tokenizer, report: Report | None
) -> Prepared:
    if is_store(path):
        ready = open_prepared(path)
        check_tokenizer(ready.train, tokenizer)
        return ready
    key = [
        path,
        tokenizer.fingerprint,
        section.text_key,
        section.document_separator,
        section.eval_fraction,
    ]
    name = f"{Path(path).stem}-{_hash(key)}"
    return prepare(
        [path],
        Path(section.store) / name,
        tokenizer,
        text_key=section.text_key,
        eval_fraction=section.eval_fraction,
        workers=section.workers,
        document_separator=section.document_separator,
        progress=report,
    )


def _eval_store(
    section: DataSection, prepared: list[Prepared], tokenizer: Tokenizer, report: Report | None
) -> Store | None:
    if section.eval is None:
        return next((made.eval for made in prepared if made.eval is not None), None)
    whole = section.model_copy(update={"eval_fraction": 0.0})
    made = _prepared(section.eval, whole, tokenizer, report)
    return made.eval or made.train


def _digest(section: DataSection, sources: list[SourceSection]) -> str:
    contents = [hash_file(file) for file in find_files([source.path for source in sources])]
    return _hash(
        [contents, section.tokenizer_vocab_size, section.text_key, section.document_separator]
    )


def _hash(key: object) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
