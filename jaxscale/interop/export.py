"""Tensors of a checkpoint into safetensors files: planned, streamed, resumable, shared by processes, verified."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxscale.checkpoint.casting import overflow_message
from jaxscale.checkpoint.integrity import CHECKSUMS_FILE, find_problems
from jaxscale.errors import UserError
from jaxscale.interop import crc
from jaxscale.interop.journal import Done, Journal, open_journal, write_atomically
from jaxscale.interop.shard_writer import Report, ShardWriter, crc_of
from jaxscale.interop.shards import INDEX_FILE, Piece, Shard, index, pieces, plan_shards, shares
from jaxscale.interop.tensor_source import TensorSource

EXPORT_FILE = "export.json"
# In the hands of each thread, and its source with it: twice as much where that is fp32 and the target bf16.
PIECE_BYTES = 16 * 2**20
_MAX_THREADS = 4


def _silent(_num_bytes: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to write.

    max_shard_bytes: most bytes of tensors in one file; a larger tensor has one of its own.
    piece_bytes: bytes of the target that a thread converts at once.
    process, num_processes: this process's part of the work, for several that share the target's file system.
    overflow: what to do about finite values that become infinite in the target's dtype.
    integrity: whether to read and check the checkpoint's own checksums first.
    report: told the bytes of each piece written.
    """

    max_shard_bytes: int = 5 * 10**9
    piece_bytes: int = PIECE_BYTES
    process: int = 0
    num_processes: int = 1
    overflow: Literal["refuse", "allow"] = "refuse"
    integrity: Literal["verify", "skip"] = "verify"
    num_threads: int | None = None
    report: Report = _silent


@dataclass(frozen=True)
class Exported:
    """What there is now. complete: False while other processes have not written their parts.

    num_bytes: of all tensors. skipped: pieces of this process's part that an earlier run had finished.
    """

    out: Path
    files: tuple[str, ...]
    num_bytes: int
    complete: bool
    skipped: int = 0


def export_tensors(
    source: TensorSource,
    out: Path,
    options: ExportOptions,
    identity: str,
    side_files: Callable[[Path], None],
) -> Exported:
    """Write the tensors of `source` below `out`; run again to go on after an interruption.

    identity: what else decides the content of `out`. side_files: writes all that is not tensors, once these are there.
    The index (of more than one file) comes last. Raises UserError for a target that holds something else, a damaged
    checkpoint, no room, or overflows that are not allowed; OSError where the disk fails.
    """
    _check_process(options)
    shards = plan_shards(source.infos, options.max_shard_bytes)
    fingerprint = _fingerprint(source, shards, identity)
    files, total = tuple(shard.file for shard in shards), sum(s.num_bytes for s in shards)
    if _finished_as(out) == fingerprint:
        _check_finished(out)
        return Exported(
            out,
            files,
            total,
            complete=True,
            skipped=sum(1 for _ in pieces(shards, options.piece_bytes)),
        )
    journal = open_journal(out, options.process, fingerprint)
    _check_source(source.stored.checkpoint, options)
    every = list(pieces(shards, options.piece_bytes))
    _check_room(out, every, journal)
    own = shares(every, options.num_processes)[options.process]
    written = _writer(source, out, journal, options).write(own, every)
    if written.overflows and options.overflow == "refuse":
        assert source.dtype is not None
        checkpoint = str(source.stored.checkpoint)
        raise UserError(overflow_message(checkpoint, written.overflows, source.dtype))
    complete = all((out / file).is_file() for file in files)
    if complete:
        side_files(out)
        sums = journal.done()
        write_atomically(out / EXPORT_FILE, _record(source, shards, every, sums, fingerprint))
        if len(shards) > 1:
            write_atomically(out / INDEX_FILE, json.dumps(index(shards), indent=2) + "\n")
        journal.forget()
    return Exported(out, files, total, complete=complete, skipped=written.skipped)


def _writer(
    source: TensorSource, out: Path, journal: Journal, options: ExportOptions
) -> ShardWriter:
    by_name = source.by_name()

    def convert(piece: Piece) -> tuple[np.ndarray[Any, Any], int]:
        return source.rows(by_name[piece.tensor.name], piece.start, piece.stop)

    return ShardWriter(
        target=out,
        journal=journal,
        convert=convert,
        report=options.report,
        num_threads=options.num_threads or min(_MAX_THREADS, os.cpu_count() or 1),
        allow_overflow=options.overflow == "allow",
    )


def _fingerprint(source: TensorSource, shards: Sequence[Shard], identity: str) -> str:
    """Two exports of one fingerprint write the same bytes."""
    checkpoint = source.stored.checkpoint / CHECKSUMS_FILE
    digest = hashlib.sha256(checkpoint.read_bytes() if checkpoint.is_file() else b"")
    for text in (source.part, identity):
        digest.update(text.encode() + b"\0")
    for shard in shards:
        digest.update(shard.file.encode() + shard.header)
    return digest.hexdigest()


def _finished_as(out: Path) -> str | None:
    """The fingerprint of the finished export in a directory."""
    path = out / EXPORT_FILE
    return json.loads(path.read_bytes()).get("fingerprint") if path.is_file() else None


def _record(
    source: TensorSource,
    shards: Sequence[Shard],
    every: Sequence[Piece],
    sums: Done,
    fingerprint: str,
) -> str:
    """`export.json`: where each tensor lies, and the CRC-32 of its bytes."""
    parts: dict[str, list[tuple[int, int]]] = {}
    for piece in every:
        known = sums[piece.shard.file][piece.offset]
        parts.setdefault(piece.tensor.name, []).append((known, piece.num_bytes))
    files = {
        shard.file: {
            "bytes": shard.num_bytes,
            "tensors": {
                tensor.name: {
                    "offset": shard.offsets[tensor.name],
                    "bytes": tensor.num_bytes,
                    "crc32": f"{crc.combine(parts[tensor.name]):08x}",
                }
                for tensor in shard.tensors
            },
        }
        for shard in shards
    }
    step = source.stored.manifest.step
    return (
        json.dumps(
            {
                "format": 1,
                "step": step,
                "part": source.part,
                "fingerprint": fingerprint,
                "files": files,
            },
            indent=1,
        )
        + "\n"
    )


def find_export_problems(out: Path) -> list[str]:
    """Every tensor of a finished export whose bytes are not what was written, by reading all of it."""
    record, found = json.loads((out / EXPORT_FILE).read_bytes()), []
    for file, entry in record["files"].items():
        if not (out / file).is_file():
            found.append(f"{file}: missing")
            continue
        for name, tensor in entry["tensors"].items():
            if crc_of(out / file, tensor["offset"], tensor["bytes"]) != int(tensor["crc32"], 16):
                found.append(f"{file}: {name} is not what was written")
    return found


def _check_finished(out: Path) -> None:
    problems = find_export_problems(out)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems[:10])
        raise UserError(
            f"{out} holds this export, finished, and has changed since:\n{lines}\nRemove the directory and export again"
        )


def _check_process(options: ExportOptions) -> None:
    if not 0 <= options.process < options.num_processes:
        raise UserError(
            f"process {options.process} of {options.num_processes}: processes count from 0 to "
            f"{max(0, options.num_processes - 1)}"
        )


def _check_source(checkpoint: Path, options: ExportOptions) -> None:
    if options.integrity == "skip":
        return
    problems = find_problems(checkpoint, part=options.process, num_parts=options.num_processes)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"checkpoint {checkpoint} is damaged; export another step:\n{lines}")


def _check_room(out: Path, every: Sequence[Piece], journal: Journal) -> None:
    done = journal.done()
    left = sum(p.num_bytes for p in every if p.offset not in done.get(p.shard.file, {}))
    free = shutil.disk_usage(out).free
    if left > free:
        raise UserError(
            f"{out} has no room: {left / 1e6:,.1f} MB are still to be written, {free / 1e6:,.1f} MB are free. Free "
            "some space, or name a directory elsewhere"
        )
