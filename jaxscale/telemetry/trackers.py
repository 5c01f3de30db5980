"""Where metrics go besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, Trackio, OpenTelemetry.

A tracker that cannot start is an error before training does; one that fails later is the tracker's
trouble, not the run's.
"""

import difflib
import importlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from jaxscale.errors import UserError
from jaxscale.telemetry import tracker_backends as backends
from jaxscale.telemetry.metrics import Scalar

# An unreachable server can hold a call up for many seconds: do not pay for that at every step.
_REST_SECONDS = 60.0

_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Somewhere metrics and samples are shown."""

    def log(self, step: int, values: Mapping[str, Scalar]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self) -> None: ...


class GuardedTracker:
    """Passes finite numbers and text on to a tracker; when it fails, warns once and lets it rest a minute.

    `failures` are the exceptions that count as the tracker's own trouble; any other one is a bug and
    is raised. `warn` takes one line for the person watching.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        name: str,
        failures: tuple[type[Exception], ...],
        warn: Callable[[str], None] = _logger.warning,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._name = name
        self._failures = failures
        self._warn = warn
        self._clock = clock
        self._resting_until = -math.inf
        self._num_lost = 0

    def log(self, step: int, values: Mapping[str, Scalar]) -> None:
        numbers = {k: v for k, v in values.items() if _is_finite_number(v) and k != "step"}
        self._attempt(lambda: self._tracker.log(step, numbers))

    def text(self, step: int, name: str, text: str) -> None:
        self._attempt(lambda: self._tracker.text(step, name, text))

    def close(self) -> None:
        self._resting_until = -math.inf
        self._attempt(self._tracker.close)
        if self._num_lost > 1:
            self._warn(
                f"{self._name}: {self._num_lost} records were not sent; all are in metrics.jsonl"
            )

    def _attempt(self, send: Callable[[], None]) -> None:
        if self._clock() < self._resting_until:
            self._num_lost += 1
            return
        try:
            send()
        except self._failures as error:
            self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        self._resting_until = self._clock() + _REST_SECONDS
        self._num_lost += 1
        if self._num_lost == 1:
            self._warn(
                f"{self._name} failed ({type(error).__name__}: {error}); training goes on, "
                f"trying it again every {_REST_SECONDS:.0f} s; metrics.jsonl has every record"
            )


class _AllTrackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Mapping[str, Scalar]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def text(self, step: int, name: str, text: str) -> None:
        for tracker in self._trackers:
            tracker.text(step, name, text)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def make_trackers(
    names: Sequence[str],
    *,
    run_dir: Path,
    config: Mapping[str, Any],
    run_name: str,
    start_step: int = 0,
    warn: Callable[[str], None] = _logger.warning,
) -> Tracker:
    """One tracker that passes everything to those in `names`; none for no names.

    `start_step` is the step a resumed run continues after: what was logged beyond it is hidden where the
    tracker can. A resumed run continues its own page. Raises UserError for an unknown name, a
    package that is not installed, or a tracker that refuses to start.
    """
    chosen = {name: _import(name) for name in dict.fromkeys(names)}
    run = backends.Run(run_dir, run_name, config, start_step)
    return _AllTrackers([_start(name, package, run, warn) for name, package in chosen.items()])


def _import(name: str) -> ModuleType:
    """The tracker's package."""
    if name not in backends.BACKENDS:
        close = difflib.get_close_matches(name, backends.BACKENDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"no tracker {name!r} (there are {', '.join(backends.BACKENDS)}){hint}")
    backend = backends.BACKENDS[name]
    try:
        return importlib.import_module(backend.package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"tracker {name!r} needs the package {error.name!r}, which is not installed: {backend.install}"
        ) from error


def _start(
    name: str, package: ModuleType, run: backends.Run, warn: Callable[[str], None]
) -> GuardedTracker:
    backend = backends.BACKENDS[name]
    failures = backend.failures(package)
    try:
        tracker = backend.start(package, run)
    except failures as error:
        raise UserError(
            f"tracker {name!r} did not start: {str(error).rstrip('.')}. {backend.hint}"
        ) from error
    return GuardedTracker(tracker, name=name, failures=failures, warn=warn)


def _is_finite_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
