"""Whether runs can live in a directory: checkpoints need rename, fsync and exclusive creation to mean what they say."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxscale.telemetry.doctor.finding import Finding, Options, State
from jaxscale.telemetry.format import bytes_text, seconds_text

_CHECK = "storage"
_FEW_BYTES, _FEW_FILES = 20 * 2**30, 10_000
_SLOW_SYNC = 0.5
_SKEW = 2.0
# File systems that forget, and those that only look like one.
_FORGETS = {"tmpfs", "ramfs", "overlay"}
_OBJECTS = {"fuse.gcsfuse", "fuse.s3fs", "fuse.mount-s3", "fuse.goofys", "fuse.blobfuse2"}


def check_storage(options: Options) -> list[Finding]:
    """Writes, renames and removes small files where runs live (or above, where they will)."""
    directory = options.existing
    findings = [*_kind_findings(directory), *_room_findings(directory)]
    try:
        with _scratch(directory) as folder:
            findings += [test(folder) for test in _TESTS]
    except OSError as error:
        words = f"{directory} cannot be written: {error.strerror}"
        fix = "choose another directory with --run-dir, or have it made writable"
        return [*findings, Finding(_CHECK, "bad", words, fix)]
    return findings


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    folder = directory / f".jaxscale-doctor-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rename_replaces(folder: Path) -> Finding:
    """The whole new file or the whole old one is what `metrics.jsonl` and `config.yaml` rest on."""
    old, new = folder / "file", folder / "file.tmp"
    old.write_text("old")
    new.write_text("new")
    new.replace(old)
    good = old.read_text() == "new" and not new.exists()
    return _told(
        "a file can be replaced whole", "replacing a file leaves both or neither", good=good
    )


def _folders_move(folder: Path) -> Finding:
    """A checkpoint appears by the rename of its folder."""
    source, target = folder / "1.saving", folder / "1"
    source.mkdir()
    (source / "data").write_text("x")
    try:
        source.rename(target)
    except OSError as error:
        return _told("", f"a folder cannot be renamed ({error.strerror})", good=False)
    good = (target / "data").read_text() == "x" and not source.exists()
    return _told(
        "a checkpoint appears at once", "renaming a folder leaves both or neither", good=good
    )


def _creation_excludes(folder: Path) -> Finding:
    path = folder / "exclusive"
    path.touch(exist_ok=False)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return _told("one process alone can create a file", "", good=True)
    return _told("", "two processes can both create the same file", good=False)


def _sync(folder: Path) -> Finding:
    path = folder / "synced"
    began = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            return _told(
                "", "fsync does nothing: what was written may be lost with the power", good=False
            )
        raise
    seconds = time.perf_counter() - began
    state: State = "warn" if seconds > _SLOW_SYNC else "good"
    fix = (
        "checkpoints are written in the background, but many small files will be slow"
        if state == "warn"
        else ""
    )
    return Finding(_CHECK, state, f"4 KiB written and synced in {seconds_text(seconds)}", fix)


def _clock(folder: Path) -> Finding:
    """The file server's clock stamps files; `status` and other hosts compare it with their own."""
    path = folder / "stamp"
    before = time.time()
    path.touch()
    stamped, after = path.stat().st_mtime, time.time()
    skew = max(before - stamped, stamped - after, 0.0)
    if skew > _SKEW:
        words = f"this machine's clock and the storage's differ by {skew:.0f} s"
        return Finding("clock", "warn", words, "synchronize the clocks (chrony, systemd-timesyncd)")
    return Finding("clock", "good", "this machine and the storage agree on the time")


_TESTS: tuple[Callable[[Path], Finding], ...] = (
    *(_rename_replaces, _folders_move, _creation_excludes),
    *(_sync, _clock),
)


def _told(good_words: str, bad_words: str, *, good: bool) -> Finding:
    if good:
        return Finding(_CHECK, "good", good_words)
    fix = (
        "keep runs on a file system with POSIX semantics (local disk, NFS, Lustre, Filestore, FSx)"
    )
    return Finding(_CHECK, "bad", bad_words, fix)


def _kind_findings(directory: Path) -> list[Finding]:
    kind = mounted_kind(directory)
    if kind in _OBJECTS:
        words = f"{directory} is an object store behind {kind}: renaming is copying, and not atomic"
        return [
            Finding(
                _CHECK, "warn", words, "keep runs on a file system, and copy checkpoints to objects"
            )
        ]
    if kind in _FORGETS:
        words = f"{directory} is on {kind}: gone with the machine or its container"
        return [Finding(_CHECK, "warn", words, "mount a disk, or name one with --run-dir")]
    return [Finding(_CHECK, "good", f"{directory} is on {kind or 'a file system'}")]


def mounted_kind(directory: Path) -> str | None:
    """The type of the file system that a directory is on; None where the system does not say."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return None
    path = directory.resolve()
    rows = [line.split() for line in mounts.read_text().splitlines()]
    # Spaces in names are written in octal.
    known = {Path(row[1].encode().decode("unicode_escape")): row[2] for row in rows}
    return next((known[one] for one in (path, *path.parents) if one in known), None)


def _room_findings(directory: Path) -> list[Finding]:
    """Room for a few checkpoints; how much they take is for `jaxscale describe` to say."""
    findings = []
    free, found = shutil.disk_usage(directory).free, os.statvfs(directory)
    words = f"{bytes_text(free)} free on {directory}"
    if free < _FEW_BYTES:
        fix = "make room: a checkpoint takes 12 to 16 bytes a parameter, and two exist while one is written"
        findings.append(Finding(_CHECK, "warn" if free > 2**30 else "bad", words, fix))
    else:
        findings.append(Finding(_CHECK, "good", words))
    if 0 < found.f_favail < _FEW_FILES < found.f_files:
        words = f"{found.f_favail:,} files can still be made on {directory}"
        findings.append(Finding(_CHECK, "warn", words, "remove small files: the inodes run out"))
    return findings
