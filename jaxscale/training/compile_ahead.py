"""The train step, compiled by a thread of its own while the main one reads the checkpoint and the first batches.

A compilation cannot be called off. Where the run ends before its first step, what it has to say is said at once, and
the process ends when the compiler has.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module

import jax

from jaxscale.kernels.registry import Choice, recording
from jaxscale.parallel.compiler_options import Say
from jaxscale.training.job import Job
from jaxscale.training.losses import Batch
from jaxscale.training.lowering import abstract_parts
from jaxscale.training.state import TrainState
from jaxscale.training.step import Metrics, jit_step

Tell = Callable[[Sequence[Choice]], None]


class TrainStep:
    """The step of a run, under jit. Its first call compiles it, or waits for `compile_ahead`, whose errors it raises.

    tell: is told, once the step is compiled, which kernels were chosen for it. say: which options the compiler does
    without. Raises PlacementError for an option in the plan that it does not know.
    """

    def __init__(self, job: Job, say: Say | None = None) -> None:
        self._parts = abstract_parts(job)
        self._jitted = jit_step(self._parts.step, self._parts.shardings, job.placement, say)
        self._mesh = job.placement.mesh
        self.tell: Tell = _to_nobody
        self._ahead: Future[Sequence[Choice]] | None = None

    def compile_ahead(self) -> None:
        """Begins to compile for the shapes and shardings of the run; returns at once."""
        # The loader's import of it replaces `builtins.__import__` for a moment (etils' lazy imports), and whatever
        # another thread imports then is no module.
        import_module("grain")
        executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._ahead = executor.submit(self._compile)
        executor.shutdown(wait=False)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        ahead, self._ahead = self._ahead, None
        known = [] if ahead is None else ahead.result()
        # What was compiled ahead is in the function's own cache: this traces and compiles nothing then.
        with jax.set_mesh(self._mesh), recording() as choices:
            result: tuple[TrainState, Metrics] = self._jitted(state, batch)
        if known or choices:
            self.tell([*known, *choices])
        return result

    def _compile(self) -> Sequence[Choice]:
        with jax.set_mesh(self._mesh), recording() as choices:
            self._jitted.lower(self._parts.state, self._parts.batch).compile()
        return choices


def _to_nobody(_choices: Sequence[Choice]) -> None:
    """Before there is a screen."""
