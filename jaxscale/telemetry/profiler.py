"""A trace of a few training steps, for TensorBoard's profile tab or Perfetto."""

from pathlib import Path
from typing import Any

import jax


class StepProfiler:
    """Records steps `start` to `start + steps - 1` to `directory`; a run that resumes later records nothing.

    Zero `steps` record nothing, so that a loop needs no condition.
    """

    def __init__(self, start: int, steps: int, directory: Path) -> None:
        self._first = start if steps > 0 else None
        self._last = start + steps - 1
        self._directory = directory
        self._tracing = False

    def before(self, step: int) -> None:
        if step == self._first:
            self._directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    def after(self, step: int, outputs: Any = None) -> None:
        """`outputs` of the step are waited for, or the trace would end before the device is done."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """End a trace that is still open (the run stopped inside it)."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
