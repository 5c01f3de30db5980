"""Text files to stores of tokens, in parallel, and from where it stopped.

    OUT/train, OUT/eval   the stores; each appears whole or not at all
    OUT/.parts            files tokenized so far; removed at the end
    OUT/.building         stores being written

The stores depend on the files' contents and order, the tokenizer and the options; never on the
number of workers or on interruptions.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TypeVar

from jaxscale.data.alone import alone_in
from jaxscale.data.manifest import (
    FILE_NAME,
    Manifest,
    Options,
    SourceRecord,
    TokenizerRecord,
    read_manifest,
    store_inputs,
    write_manifest,
)
from jaxscale.data.parts import Count, Job, Part, make_part, record_source
from jaxscale.data.sources import SourceFile, find_files
from jaxscale.data.splits import EVAL, SPLITS, TRAIN
from jaxscale.data.store import Store, StoreWriter, check_fingerprint
from jaxscale.data.tokenizers import BYTES, ByteTokenizer, Tokenizer
from jaxscale.data.tokenizers import FILE_NAME as TOKENIZER
from jaxscale.data.workers import run_all
from jaxscale.errors import UserError

PARTS, BUILDING = ".parts", ".building"
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class Progress:
    """`done` of `total` files of a phase ("hash", "tokenize" or "write"); counts are so far."""

    phase: str
    done: int
    total: int
    count: Count


@dataclass(frozen=True)
class Prepared:
    """The stores. `reused` when they were there already, made from the same inputs."""

    train: Store
    eval: Store | None
    reused: bool


Report = Callable[[Progress], None]


def prepare(
    sources: Sequence[str],
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    text_key: str = "text",
    eval_fraction: float = 0.0,
    workers: int = 1,
    document_separator: str | None = None,
    progress: Report | None = None,
) -> Prepared:
    """Makes the stores OUT/train and, if `eval_fraction` > 0, OUT/eval.

    Documents are held out by a hash of their text. If that would leave a side empty (a single book,
    say) about `eval_fraction` of the end of every document is held out instead, cut between
    paragraphs, or lines, or words if there are none. A document is held in memory whole.

    Raises UserError for sources that cannot be read, for an OUT that another tokenizer made, and
    when nothing can be held out.
    """
    options = Options(text_key, document_separator, eval_fraction)
    folder = _check(out, options, tokenizer)
    report = progress or (lambda _: None)
    files = find_files(sources)
    records = _run("hash", record_source, files, workers, report)
    ready = _find_finished(folder, options, records, tokenizer)
    if ready is not None:
        return ready
    with alone_in(folder):
        # Every process of a run prepares: those that waited find what the first one made.
        ready = _find_finished(folder, options, records, tokenizer)
        if ready is not None:
            return ready
        work = _Work(folder, files, records, options, tokenizer, workers, report)
        split_by, parts = _tokenize(work)
        _write_stores(work, split_by, parts)
        return _open(folder, options, reused=False)


@dataclass(frozen=True)
class _Work:
    folder: Path
    files: list[SourceFile]
    records: list[SourceRecord]
    options: Options
    tokenizer: Tokenizer
    workers: int
    report: Report


def _check(out: str | Path, options: Options, tokenizer: Tokenizer) -> Path:
    if "://" in str(out):
        raise UserError(f"{out} is not a local folder: prepare into one, then copy it there")
    if not 0 <= options.eval_fraction < 1:
        raise UserError(f"eval_fraction is {options.eval_fraction}: it must be at least 0, below 1")
    if options.document_separator == "":
        raise UserError("document_separator is empty: leave it out to keep each file whole")
    for path in (Path(out) / split for split in SPLITS):
        if manifest := _manifest_if_any(path):
            check_fingerprint(str(path), manifest, tokenizer.fingerprint)
    return Path(out)


def _manifest_if_any(path: Path) -> Manifest | None:
    try:
        return read_manifest(str(path))
    except UserError:  # Missing or damaged: there is nothing to protect.
        return None


def _find_finished(
    folder: Path, options: Options, records: list[SourceRecord], tokenizer: Tokenizer
) -> Prepared | None:
    try:
        ready = _open(folder, options, reused=True)
    except UserError:  # Missing or damaged: to be made.
        return None
    wanted = store_inputs(records, options, tokenizer.fingerprint)
    stores = [store for store in (ready.train, ready.eval) if store]
    return ready if all(store.manifest.inputs == wanted for store in stores) else None


def _open(folder: Path, options: Options, *, reused: bool) -> Prepared:
    held_out = Store.open(folder / EVAL) if options.eval_fraction > 0 else None
    return Prepared(Store.open(folder / TRAIN), held_out, reused)


def _tokenize(work: _Work) -> tuple[str, list[Part]]:
    """The finished parts in the order of the files, and how documents were held out."""
    (work.folder / PARTS).mkdir(parents=True, exist_ok=True)
    for unfinished in (work.folder / PARTS).glob("unfinished-*"):
        shutil.rmtree(unfinished)
    if work.options.eval_fraction == 0:
        return "none", _make_parts(work, "none")
    for split_by in ("hash", "tail"):
        parts = _make_parts(work, split_by)
        if all(_total(parts, split).documents for split in SPLITS):
            return split_by, parts
    count = _total(parts, TRAIN)
    raise UserError(
        f"nothing is left to evaluate on: eval_fraction {work.options.eval_fraction} of "
        f"{count.documents} documents of {count.text_bytes} bytes leaves one side empty; change "
        f"eval_fraction or add text"
    )


def _make_parts(work: _Work, split_by: str) -> list[Part]:
    jobs = [
        Job(file, record, work.options, split_by, work.tokenizer, work.folder / PARTS)
        for file, record in zip(work.files, work.records, strict=True)
    ]
    return _run("tokenize", make_part, jobs, work.workers, work.report)


def _run(
    phase: str,
    function: Callable[[A], R],
    arguments: Sequence[A],
    workers: int,
    report: Report,
) -> list[R]:
    """Results in the order of the arguments; reports each as it comes."""
    results: dict[int, R] = {}
    count = Count()
    for i, result in run_all(function, arguments, workers):
        results[i] = result
        if isinstance(result, Part):
            count = reduce(add, result.counts.values(), count)
        report(Progress(phase, len(results), len(arguments), count))
    return [results[i] for i in range(len(arguments))]


def _write_stores(work: _Work, split_by: str, parts: list[Part]) -> None:
    """Writes the stores aside, then puts them in place, the train store last."""
    building = work.folder / BUILDING
    shutil.rmtree(building, ignore_errors=True)
    splits = SPLITS if split_by != "none" else (TRAIN,)
    for split in splits:
        _write_store(work, split_by, parts, split)
    for split in SPLITS:
        (work.folder / split / FILE_NAME).unlink(missing_ok=True)
        shutil.rmtree(work.folder / split, ignore_errors=True)
    for split in reversed(splits):
        (building / split).rename(work.folder / split)
    shutil.rmtree(building)
    shutil.rmtree(work.folder / PARTS)


def _write_store(work: _Work, split_by: str, parts: list[Part], split: str) -> None:
    path = work.folder / BUILDING / split
    path.mkdir(parents=True)
    total, done = _total(parts, split), Count()
    writer = StoreWriter(path, total.tokens, total.documents, work.tokenizer.vocab_size)
    for number, part in enumerate(parts, start=1):
        for tokens, ends in part.read(split):
            writer.append(tokens, ends)
        done += part.counts[split]
        work.report(Progress("write", number, len(parts), done))
    checksums = writer.finish()
    work.tokenizer.save(path)
    write_manifest(
        path,
        Manifest(
            split=split,
            split_by=split_by,
            num_documents=total.documents,
            num_tokens=total.tokens,
            num_text_bytes=total.text_bytes,
            options=work.options,
            tokenizer=_tokenizer_record(work.tokenizer),
            sources=tuple(work.records),
            checksums=checksums,
        ),
    )


def _tokenizer_record(tokenizer: Tokenizer) -> TokenizerRecord:
    return TokenizerRecord(
        spec=BYTES if isinstance(tokenizer, ByteTokenizer) else TOKENIZER,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
    )


def _total(parts: list[Part], split: str) -> Count:
    return reduce(add, (part.counts[split] for part in parts), Count())
