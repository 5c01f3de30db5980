"""What a bad step leads to, by the run's policy."""

from collections.abc import Callable, Mapping

from jaxscale.config.run_sections import TrainingSection
from jaxscale.data.loader import Batches
from jaxscale.errors import UserError
from jaxscale.training.health.bad_steps import History, RollBack, why_bad

_SHOWN_ROWS = 8


class NonFiniteLoss(UserError):
    """The loss or its gradient is not a number; the state is that of the step before."""


class LossSpike(UserError):
    """The loss is far above those before it; the update was made."""


class Judge:
    """Sees the metrics of every step in order. Raises by the policy; `history` is what a checkpoint has to keep."""

    def __init__(
        self,
        training: TrainingSection,
        batches: Batches,
        history: History,
        note: Callable[[str], None],
        last_checkpoint: Callable[[], int | None],
    ) -> None:
        self._training, self._note, self._last_checkpoint = training, note, last_checkpoint
        self.batches, self.history = batches, history

    def __call__(self, done: int, metrics: Mapping[str, float]) -> None:
        spike = self._training.loss_spike
        why = why_bad(metrics, self.history.losses, spike)
        if why is not None:
            self._bad(done, why, finite=bool(metrics["finite"]))
        elif spike is not None:
            self.history = self.history.with_loss(metrics["loss"])

    def _bad(self, done: int, why: str, *, finite: bool) -> None:
        message = self._message(done, why)
        match self._training.on_bad_step:
            case "rollback":
                raise RollBack(done, message)
            case "skip":
                self.history = self.history.counted()
                self._note(f"skipped ({self.history.bad_steps} in all): {message}")
            case "stop" if finite:
                raise LossSpike(
                    f"{message}. Lower the learning rate, or go back and leave such batches out with "
                    "training.on_bad_step=rollback"
                )
            case "stop":
                raise NonFiniteLoss(
                    f"{message}. The update was not made. Lower the learning rate, or go on without such batches "
                    "with training.on_bad_step=skip (or rollback)"
                )

    def _message(self, done: int, why: str) -> str:
        step = done - 1
        rows = self.batches.describe(step)[:_SHOWN_ROWS]
        origins = "\n  ".join(map(str, rows))
        return (
            f"the loss or gradient of step {done} {why}; its batch ({self.batches.number_of(step)}) holds\n"
            f"  {origins}\nlast checkpoint: {self._last_checkpoint()}"
        )
