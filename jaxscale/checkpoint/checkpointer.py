"""Save and restore flat trees of arrays: asynchronous, atomic, checksummed, on any mesh."""

import errno
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxscale.checkpoint import arrays as stored_arrays
from jaxscale.checkpoint import layout
from jaxscale.checkpoint.block_writer import write_tree
from jaxscale.checkpoint.integrity import Problem, find_problems, write_checksums
from jaxscale.checkpoint.keep import Keep, obsolete_steps
from jaxscale.checkpoint.manifest import (
    METADATA_FILE,
    ArrayEntry,
    Manifest,
    check_fits,
    describe,
    read_manifest,
    to_json,
)
from jaxscale.checkpoint.places import Place, check_reachable
from jaxscale.errors import UserError


class CheckpointSaveError(UserError):
    """A checkpoint could not be written; those before it are untouched."""


@dataclass(frozen=True)
class Restored:
    """A restored checkpoint: arrays by logical path, and the metadata given to `save`."""

    step: int
    arrays: dict[str, jax.Array]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class _Pending:
    manifest: Manifest
    outcome: Future[float]


def _warn_loudly(message: str) -> None:
    warnings.warn(message, stacklevel=2)


class Checkpointer:
    """Checkpoints of one run, as folders `directory/STEP/`.

    One save is in flight at a time: a second waits for the first. With several processes all of
    them call `save`, `wait`, `restore` and `latest_good` together, on a disk that they share;
    process 0 writes the metadata and checksums after every process has written its arrays.

    Usage::

        with Checkpointer(run / "checkpoints", Keep(last=3)) as checkpointer:
            checkpointer.save(step, arrays, metadata)  # returns at once; donate freely
            ...
            restored = checkpointer.restore(target)    # the newest good one
    """

    def __init__(self, directory: Place, keep: Keep) -> None:
        """Raises UserError for an object store that cannot be reached."""
        check_reachable(directory)
        stored_arrays.quiet_orbax()
        self._directory = directory.absolute()
        self._keep = keep
        self._writer = stored_arrays.new_writer(directory)
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-commit")
        self._pending: _Pending | None = None
        self._num_attempts = 0
        # From `save` until it was complete, of the last save that has been waited for; None before.
        self.last_seconds: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._pending is not None:
            # The other processes may go on, and would not meet this one in `wait`.
            self._pending.outcome.exception()
            self._pending = None
        self.close()

    def close(self) -> None:
        """Waits for the save in flight and ends the background threads.

        Call it before the interpreter exits: a save that is still running then is lost (the
        checkpoint stays invisible). Raises CheckpointSaveError like `wait`.
        """
        try:
            self.wait()
        finally:
            self._committer.shutdown()
            self._writer.close()

    def save(
        self,
        step: int,
        arrays: Mapping[str, jax.Array],
        metadata: dict[str, Any],
        *,
        metric_value: float | None = None,
        blocking: bool = False,
    ) -> None:
        """Starts saving the values that the arrays have now; replaces a checkpoint of this step.

        Returns once the values are on the host, so the arrays may be donated at once. On the CPU
        backend, and for offloaded arrays, that costs one more copy of them in host memory until
        the checkpoint is complete; on accelerators a host copy, nothing on the device.
        Raises CheckpointSaveError if the save before failed, or if this one cannot start, and what JAX raises if there
        are no values to save.
        """
        self.wait()
        # Values that failed (a peer was lost in their collective) are no failure of the storage: copying them would be.
        jax.block_until_ready(dict(arrays))
        began = time.monotonic()
        value = None if metric_value is None else float(metric_value)
        manifest = Manifest(step, self._keep.metric, value, describe(arrays), metadata)
        text = to_json(manifest)
        self._num_attempts += 1
        folder = layout.staging(self._directory, step, self._num_attempts)
        try:
            if jax.process_index() == 0:
                self._check_room(manifest)
                layout.start_staging(folder)
                if not isinstance(
                    folder, Path
                ):  # Where it may not, TensorStore would try again for minutes.
                    (folder / METADATA_FILE).write_text(text)
            self._writer.start(folder / layout.ARRAYS_FOLDER, arrays)
        except (OSError, ValueError) as error:
            raise self._save_error(manifest, error) from error
        outcome = self._committer.submit(self._commit, folder, manifest, text, began)
        self._pending = _Pending(manifest, outcome)
        if blocking:
            self.wait()

    def _check_room(self, manifest: Manifest) -> None:
        """A write that fails half way leaves threads behind that fail after it: better not to begin."""
        free = self._free_bytes()
        if free is not None and manifest.bytes > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _commit(self, folder: Place, manifest: Manifest, manifest_text: str, began: float) -> float:
        """Background half of a save: complete, sum, show, and only then prune. Returns the seconds of both halves."""
        try:
            self._writer.wait()  # Every process has written its arrays.
            if jax.process_index() == 0:
                if not isinstance(folder, Path):  # Orbax does so itself.
                    write_tree(folder / layout.ARRAYS_FOLDER, (e.path for e in manifest.arrays))
                (folder / METADATA_FILE).write_text(manifest_text)
                write_checksums(folder)
                layout.publish(folder, manifest.step)
                self._prune(manifest.step)
            return time.monotonic() - began
        finally:
            if jax.process_index() == 0:
                layout.abandon(folder)  # Gone already unless this failed.

    def _prune(self, just_saved: int) -> None:
        metrics = {step: self._metric(step) for step in self.steps()}
        for step in obsolete_steps(metrics, self._keep):
            if step != just_saved:  # After going back to an older step it is not the newest.
                layout.remove(self._directory, step)

    def _metric(self, step: int) -> float | None:
        try:
            manifest = read_manifest(self._directory / str(step))
        except UserError:
            return None  # Damaged: it has no claim to be the best, and `verify` reports it.
        return manifest.metric_value if manifest.metric_name == self._keep.metric else None

    def check(self) -> None:
        """Raises CheckpointSaveError if the save in flight has failed by now; never waits.

        It looks at this process alone: with several, one that raises here has to end the job.
        """
        pending = self._pending
        if pending is None or not pending.outcome.done():
            return
        error = pending.outcome.exception()
        if error is not None:  # Otherwise it stays pending, for all processes to meet in `wait`.
            self._pending = None
            raise self._save_error(pending.manifest, error) from error

    def wait(self) -> None:
        """Waits until the save in flight is complete and visible to every process.

        Raises CheckpointSaveError if it failed, here or in another process.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        error = pending.outcome.exception()
        failed_anywhere = _any_process(flag=error is not None)
        if error is not None:
            raise self._save_error(pending.manifest, error) from error
        if failed_anywhere:
            raise CheckpointSaveError(
                f"saving checkpoint {pending.manifest.step} to {self._directory} failed in "
                "another process; its message says why"
            )
        self.last_seconds = pending.outcome.result()

    def _save_error(self, manifest: Manifest, error: BaseException) -> CheckpointSaveError:
        free = self._free_bytes()
        room = "" if free is None else f", {_megabytes(free)} are free there"
        advice = "Free some space or move the run" if room else "Mend the connection or the rights"
        steps = self.steps()
        before = (
            f"The previous checkpoint (step {steps[-1]}) is intact."
            if steps
            else "There is no earlier checkpoint."
        )
        return CheckpointSaveError(
            f"saving checkpoint {manifest.step} to {self._directory} failed: it needs "
            f"{_megabytes(manifest.bytes)}{room}. {before} {advice}, then resume. Cause: {error}"
        )

    def _free_bytes(self) -> int | None:
        """Of the disk, at the directory or what there is above it; None for an object store."""
        if not isinstance(self._directory, Path):
            return None
        places = (self._directory, *self._directory.parents)
        return shutil.disk_usage(next(place for place in places if place.exists())).free

    @property
    def directory(self) -> Place:
        """Where the checkpoints are."""
        return self._directory

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return layout.listed_steps(self._directory)

    def verify(self, step: int) -> list[Problem]:
        """Every damaged file of a checkpoint, found by reading all of it; empty if it is good."""
        return find_problems(self._existing(step))

    def read_metadata(self, step: int) -> dict[str, Any]:
        """The metadata given to `save`, without loading an array."""
        return read_manifest(self._existing(step)).metadata

    def manifest(self, step: int) -> list[ArrayEntry]:
        """Path, shape, dtype and bytes of every stored array, without loading one."""
        return list(read_manifest(self._existing(step)).arrays)

    def latest_good(self, *, warn: Callable[[str], None] = _warn_loudly) -> int | None:
        """The newest step that verifies, or None; each damaged one on the way goes to `warn`."""
        for step in reversed(self.steps()):
            message = self._damage(step)
            if message is None:
                return step
            warn(f"{message}\nTrying the checkpoint before it.")
        return None

    def restore(
        self,
        target: Mapping[str, jax.ShapeDtypeStruct],
        step: int | None = None,
        *,
        allow_extra: bool = False,
        integrity: Literal["verify", "skip"] = "verify",
        warn: Callable[[str], None] = _warn_loudly,
    ) -> Restored:
        """Arrays of a checkpoint in the shardings of `target`, whatever mesh saved them.

        Without `step`: the newest that verifies (with "skip": the newest), and `warn` hears of
        each damaged one passed over. `allow_extra` restores a part: paths that the target does
        not name are not read.
        Raises UserError if there is none, if the one asked for is damaged or missing, or if a
        path, shape or dtype differs.
        """
        self.wait()
        chosen = self._choose(step, integrity, warn)
        checkpoint = self._existing(chosen)
        manifest = read_manifest(checkpoint)
        check_fits(checkpoint, manifest, target, allow_extra=allow_extra)
        restored = stored_arrays.read(checkpoint, target)
        return Restored(chosen, restored, manifest.metadata)

    def _choose(
        self, step: int | None, integrity: Literal["verify", "skip"], warn: Callable[[str], None]
    ) -> int:
        if step is None:
            return self._choose_newest(integrity, warn)
        damage = None if integrity == "skip" else self._damage(step)
        if damage is not None:
            raise UserError(f"{damage}\nLeave the step out to use the newest good one.")
        return step

    def _choose_newest(
        self, integrity: Literal["verify", "skip"], warn: Callable[[str], None]
    ) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(f"there is no checkpoint in {self._directory}")
        chosen = steps[-1] if integrity == "skip" else self.latest_good(warn=warn)
        if chosen is None:
            raise UserError(f"every checkpoint in {self._directory} is damaged: {steps}")
        return chosen

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, or None; the processes share the reading."""
        problems = find_problems(
            self._existing(step), part=jax.process_index(), num_parts=jax.process_count()
        )
        if not _any_process(flag=bool(problems)):
            return None
        lines = [f"  {problem}" for problem in problems] or ["  (found by another process)"]
        return "\n".join([f"checkpoint {self._directory / str(step)} is damaged:", *lines])

    def _existing(self, step: int) -> Place:
        if step not in self.steps():
            raise UserError(f"no checkpoint {step} in {self._directory}; there are {self.steps()}")
        return self._directory / str(step)


def _any_process(*, flag: bool) -> bool:
    """Whether the flag is set in any process; all of them meet here."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
