"""Tensors of a checkpoint into safetensors files: planned, streamed, resumable, shared by processes, verified."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxscale.checkpoint.places import Place, open_place
from jaxscale.errors import UserError
from jaxscale.interop.export_job import EXPORT_FILE, Exported, ExportJob
from jaxscale.interop.journal import Journal, open_journal, write_atomically
from jaxscale.interop.remote_export import export_to_store
from jaxscale.interop.shard_writer import ShardWriter, crc_of
from jaxscale.interop.shards import INDEX_FILE, index, shares


def export_tensors(job: ExportJob, out: Place | str) -> Exported:
    """Write an export to a directory or a URL; run again to go on after an interruption.

    The index (of more than one file) comes last. Raises UserError for a target that holds something else, a damaged
    checkpoint, no room, or overflows that are not allowed; OSError where the disk fails.
    """
    place = open_place(out)
    if isinstance(place, Path):
        return _export_to_directory(job, place)
    return export_to_store(job, place)


def _export_to_directory(job: ExportJob, out: Path) -> Exported:
    options = job.options
    if _is_finished(out, job):
        _check_finished(out)
        return job.result(out, complete=True, skipped=len(job.pieces))
    journal = open_journal(out, options.process, job.fingerprint)
    _check_room(out, job, journal)
    own = shares(job.pieces, options.num_processes)[options.process]
    with ThreadPoolExecutor(1) as verifier:
        verified = verifier.submit(job.check_source)
        writer = ShardWriter(
            target=out,
            journal=journal,
            convert=job.convert,
            report=options.report,
            num_threads=options.threads,
            allow_overflow=options.overflow == "allow",
            verified=verified,
        )
        written = writer.write(own, job.pieces)
    job.check_overflows(written.overflows)
    complete = all((out / shard.file).is_file() for shard in job.shards)
    if complete:
        _write_the_rest(job, out, journal)
    return job.result(out, complete=complete, skipped=written.skipped)


def _write_the_rest(job: ExportJob, out: Path, journal: Journal) -> None:
    sums = journal.done()
    job.side_files(out)
    # Another process that saw the last file too may have written the record, and forgotten the journal since.
    if _recorded(out) != job.fingerprint:
        write_atomically(out / EXPORT_FILE, job.record(sums))
    if len(job.shards) > 1:
        write_atomically(out / INDEX_FILE, json.dumps(index(job.shards), indent=2) + "\n")
    journal.forget()


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


def _is_finished(out: Path, job: ExportJob) -> bool:
    indexed = len(job.shards) == 1 or (out / INDEX_FILE).is_file()
    return indexed and _recorded(out) == job.fingerprint


def _recorded(out: Path) -> str | None:
    """The fingerprint of the export whose record is in a directory."""
    path = out / EXPORT_FILE
    return json.loads(path.read_bytes()).get("fingerprint") if path.is_file() else None


def _check_finished(out: Path) -> None:
    problems = find_export_problems(out)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems[:10])
        raise UserError(
            f"{out} holds this export, finished, and has changed since:\n{lines}\nRemove the directory and export again"
        )


def _check_room(out: Path, job: ExportJob, journal: Journal) -> None:
    done = journal.done()
    left = sum(p.num_bytes for p in job.pieces if p.offset not in done.get(p.shard.file, {}))
    free = shutil.disk_usage(out).free
    if left > free:
        raise UserError(
            f"{out} has no room: {left / 1e6:,.1f} MB are still to be written, {free / 1e6:,.1f} MB are free. Free "
            "some space, or name a directory elsewhere"
        )
