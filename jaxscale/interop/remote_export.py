"""Exports into object stores (gs://, s3://) through fsspec: file by file, streamed, nothing kept on this disk.

An object is there when its upload is complete and not before, so there are no hidden names; a process writes whole
files. What is finished is noted beside them until all is, one small object a file:

    .export/plan.json          what is being exported; another export is refused
    .export/FILE.json          CRC-32 of the pieces of a file that was uploaded and read back
"""

import json
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from isal import isal_zlib
from upath import UPath

from jaxscale.checkpoint.places import check_reachable, file_names, remove_tree
from jaxscale.errors import UserError
from jaxscale.interop.export_job import EXPORT_FILE, Exported, ExportJob, Sums, pieces_by_file
from jaxscale.interop.journal import FOLDER, PLAN_FILE, check_same_export, not_empty
from jaxscale.interop.shards import INDEX_FILE, Piece, Shard, index, shares

_BLOCK_BYTES = 16 * 2**20


def export_to_store(job: ExportJob, out: UPath) -> Exported:
    """As `export_tensors`, below a URL. Shares among processes are even to within a file."""
    check_reachable(out)
    finished = _record(out, job) or _begun(out, job)
    if finished is not None:
        _check_finished(out, finished)
        return job.result(out, complete=True, skipped=len(job.pieces))
    job.check_source()
    pieces, skipped, overflows = pieces_by_file(job.pieces), 0, Counter[str]()
    for shard in shares(job.shards, job.options.num_processes)[job.options.process]:
        if _is_good(out, shard, pieces[shard.file]):
            skipped += len(pieces[shard.file])
        else:
            overflows.update(_upload(out, job, shard, pieces[shard.file]))
    job.check_overflows(overflows)
    sums = {shard.file: _noted(out, shard) for shard in job.shards}
    complete = all(found is not None for found in sums.values())
    if complete:
        _upload_the_rest(out, job, {file: found or {} for file, found in sums.items()})
    else:  # Another process may have finished everything meanwhile, and removed its notes.
        complete = _record(out, job) is not None
    return job.result(out, complete=complete, skipped=skipped)


def _record(out: UPath, job: ExportJob) -> Any:
    """What a finished export of this content says of itself, or None."""
    found = _read_json(out / EXPORT_FILE)
    return found if found is not None and found.get("fingerprint") == job.fingerprint else None


def _read_json(place: UPath) -> Any:
    """None where there is no such object."""
    try:
        return json.loads(place.read_bytes())
    except FileNotFoundError:
        return None


def _check_finished(out: UPath, record: dict[str, Any]) -> None:
    """What is cheap to see of a store: each file's size. Their bytes were read back when they were written."""
    for name, one in record["files"].items():
        if not (out / name).exists() or (out / name).stat().st_size != one["bytes"]:
            raise UserError(
                f"{out} held this export, and {name} is gone or has another size since: remove it and export again"
            )


def _begun(out: UPath, job: ExportJob) -> Any:
    """Notes what is exported. The record of another process that has finished all of it since it was looked for."""
    plan, names = _read_json(out / FOLDER / PLAN_FILE), file_names(out)
    if plan is None and names:
        finished = _record(out, job)
        if finished is None:
            raise not_empty(out, names)
        return finished
    if plan is not None:
        check_same_export(out, plan, job.fingerprint)
    (out / FOLDER / PLAN_FILE).write_text(json.dumps({"fingerprint": job.fingerprint}))
    return None


def _upload(out: UPath, job: ExportJob, shard: Shard, pieces: dict[int, Piece]) -> Counter[str]:
    """Stream a file, read it back, note it. The overflows by tensor; where they are refused the file is given up."""
    sums: dict[int, int] = {}
    overflows: Counter[str] = Counter()
    path = (out / shard.file).path
    file = out.fs.open(path, "wb", block_size=_BLOCK_BYTES, autocommit=False)
    try:
        file.write(shard.header)
        for piece, data, lost in _converted(job, list(pieces.values())):
            file.write(data)
            sums[piece.offset] = isal_zlib.crc32(data)
            overflows[piece.tensor.name] += lost
            job.options.report(piece.num_bytes)
        if +overflows and job.options.overflow == "refuse":
            return +overflows
        file.close()
        file.commit()
        file = None
    finally:
        if file is not None:
            file.discard()
            file.closed = True  # Else s3fs tries to finish it when it is forgotten.
    _check_upload(out, shard, pieces, sums)
    note = json.dumps({str(at): crc for at, crc in sums.items()})
    (out / FOLDER / f"{shard.file}.json").write_text(note)
    return +overflows


def _converted(job: ExportJob, pieces: list[Piece]) -> Iterator[tuple[Piece, bytes, int]]:
    """The bytes of pieces in their order; while one is uploaded, the next are made."""

    def make(piece: Piece) -> tuple[Piece, bytes, int]:
        values, lost = job.convert(piece)
        return piece, values.tobytes(), lost

    with ThreadPoolExecutor(job.options.threads) as pool:
        todo = iter(pieces)
        pending = deque(pool.submit(make, piece) for piece in islice(todo, job.options.threads))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(make, piece) for piece in islice(todo, 1))


def _check_upload(out: UPath, shard: Shard, pieces: dict[int, Piece], sums: Sums) -> None:
    for offset, piece in pieces.items():
        if _crc_of(out / shard.file, piece) != sums[offset]:
            raise UserError(
                f"{piece.tensor.name} reads back from {out / shard.file} other than it was written. Run the same "
                "command again"
            )


def _crc_of(file: UPath, piece: Piece) -> int:
    end = piece.offset + piece.num_bytes
    return isal_zlib.crc32(file.fs.cat_file(file.path, start=piece.offset, end=end))


def _noted(out: UPath, shard: Shard) -> dict[int, int] | None:
    """CRC-32 of a finished file's pieces."""
    found = _read_json(out / FOLDER / f"{shard.file}.json")
    return None if found is None else {int(at): crc for at, crc in found.items()}


def _is_good(out: UPath, shard: Shard, pieces: dict[int, Piece]) -> bool:
    """Whether an earlier run finished a file, and it is still what was noted then."""
    noted, file = _noted(out, shard), out / shard.file
    if noted is None or noted.keys() != pieces.keys():
        return False
    if not file.exists() or file.stat().st_size != shard.num_bytes:
        return False
    return all(_crc_of(file, piece) == noted[at] for at, piece in pieces.items())


def _upload_the_rest(out: UPath, job: ExportJob, sums: dict[str, dict[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job.side_files(Path(folder))
        # What a reader looks for first comes last.
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == "config.json"):
            (out / path.name).write_bytes(path.read_bytes())
    (out / EXPORT_FILE).write_text(job.record(sums))
    if len(job.shards) > 1:
        (out / INDEX_FILE).write_text(json.dumps(index(job.shards), indent=2) + "\n")
    remove_tree(out / FOLDER)
