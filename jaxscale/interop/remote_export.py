"""Exports into object stores (gs://, s3://) through fsspec: file by file, streamed, nothing kept on this disk.

An object is there when its upload is complete and not before, so there are no hidden names; a process writes whole
files. What is finished is noted beside them until all is, one small object a file:

    .export/plan.json          what is being exported; another export is refused
    .export/FILE.json          CRC-32 of the pieces of a file that was uploaded and read back
"""

import json
import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jaxscale.errors import UserError
from jaxscale.interop.export_job import EXPORT_FILE, Exported, ExportJob, Sums, pieces_by_file
from jaxscale.interop.journal import FOLDER, PLAN_FILE
from jaxscale.interop.shards import INDEX_FILE, Piece, Shard, index, shares

_BLOCK_BYTES = 16 * 2**20


def is_remote(location: str) -> bool:
    """Whether a location is a URL and not a path."""
    return "://" in location


@dataclass(frozen=True)
class Store:
    """A directory of an object store. location: as the user wrote it."""

    system: Any
    path: str
    location: str

    def names(self) -> set[str]:
        """Files directly inside."""
        if not self.system.exists(self.path):
            return set()
        found = self.system.ls(self.path, detail=True)
        return {one["name"].rsplit("/", 1)[-1] for one in found if one["type"] == "file"}

    def at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def read_json(self, name: str) -> Any:
        """None where there is no such object."""
        path = self.at(name)
        return json.loads(self.system.cat_file(path)) if self.system.exists(path) else None

    def write(self, name: str, content: bytes) -> None:
        self.system.pipe_file(self.at(name), content)


def export_to_store(job: ExportJob, location: str) -> Exported:
    """As `export_tensors`, below a URL. Shares among processes are even to within a file."""
    store = _open_store(location)
    finished = store.read_json(EXPORT_FILE)
    if finished is not None and finished.get("fingerprint") == job.fingerprint:
        return job.result(location, complete=True, skipped=len(job.pieces))
    _check_target(store, job)
    job.check_source()
    pieces, skipped, overflows = pieces_by_file(job.pieces), 0, Counter[str]()
    for shard in shares(job.shards, job.options.num_processes)[job.options.process]:
        if _is_good(store, shard, pieces[shard.file]):
            skipped += len(pieces[shard.file])
        else:
            overflows.update(_upload(store, job, shard, pieces[shard.file]))
    job.check_overflows(overflows)
    sums = {shard.file: _noted(store, shard) for shard in job.shards}
    complete = all(found is not None for found in sums.values())
    if complete:
        _upload_the_rest(store, job, {file: found or {} for file, found in sums.items()})
    return job.result(location, complete=complete, skipped=skipped)


def _open_store(location: str) -> Store:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise UserError(f"{location} cannot be opened: {error}") from error
    return Store(system, path.rstrip("/"), location)


def _check_target(store: Store, job: ExportJob) -> None:
    plan = store.read_json(f"{FOLDER}/{PLAN_FILE}")
    if plan is None and store.names():
        shown = ", ".join(sorted(store.names())[:3])
        raise UserError(f"{store.location} is not empty ({shown}, ...): name another place")
    if plan is not None and plan.get("fingerprint") != job.fingerprint:
        raise UserError(
            f"{store.location} holds another export that is not finished (of another checkpoint, or with other "
            "options): go on with that one, or remove it"
        )
    store.write(f"{FOLDER}/{PLAN_FILE}", json.dumps({"fingerprint": job.fingerprint}).encode())


def _upload(store: Store, job: ExportJob, shard: Shard, pieces: dict[int, Piece]) -> Counter[str]:
    """Stream a file, read it back, note it. The overflows by tensor; where they are refused the file is given up."""
    sums: dict[int, int] = {}
    overflows: Counter[str] = Counter()
    file = store.system.open(store.at(shard.file), "wb", block_size=_BLOCK_BYTES, autocommit=False)
    try:
        file.write(shard.header)
        for piece, data, lost in _converted(job, list(pieces.values())):
            file.write(data)
            sums[piece.offset] = zlib.crc32(data)
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
    _check_upload(store, shard, pieces, sums)
    note = json.dumps({str(at): crc for at, crc in sums.items()})
    store.write(f"{FOLDER}/{shard.file}.json", note.encode())
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


def _check_upload(store: Store, shard: Shard, pieces: dict[int, Piece], sums: Sums) -> None:
    for offset, piece in pieces.items():
        if _crc_of(store, shard, piece) != sums[offset]:
            raise UserError(
                f"{piece.tensor.name} reads back from {store.location}/{shard.file} other than it was written. Run the "
                "same command again"
            )


def _crc_of(store: Store, shard: Shard, piece: Piece) -> int:
    end = piece.offset + piece.num_bytes
    return zlib.crc32(store.system.cat_file(store.at(shard.file), start=piece.offset, end=end))


def _noted(store: Store, shard: Shard) -> dict[int, int] | None:
    """CRC-32 of a finished file's pieces."""
    found = store.read_json(f"{FOLDER}/{shard.file}.json")
    return None if found is None else {int(at): crc for at, crc in found.items()}


def _is_good(store: Store, shard: Shard, pieces: dict[int, Piece]) -> bool:
    """Whether an earlier run finished a file, and it is still what was noted then."""
    noted = _noted(store, shard)
    if noted is None or shard.file not in store.names() or noted.keys() != pieces.keys():
        return False
    return all(_crc_of(store, shard, piece) == noted[at] for at, piece in pieces.items())


def _upload_the_rest(store: Store, job: ExportJob, sums: dict[str, dict[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job.side_files(Path(folder))
        # What a reader looks for first comes last.
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == "config.json"):
            store.write(path.name, path.read_bytes())
    store.write(EXPORT_FILE, job.record(sums).encode())
    if len(job.shards) > 1:
        store.write(INDEX_FILE, (json.dumps(index(job.shards), indent=2) + "\n").encode())
    store.system.rm(store.at(FOLDER), recursive=True)
