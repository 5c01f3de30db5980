"""The metrics of each step, once they are known: logged at intervals, and watched for what is not finite."""

from collections.abc import Callable

from jaxscale.config.run_sections import TrainingSection
from jaxscale.errors import UserError
from jaxscale.models.families import resolve
from jaxscale.models.flops import training_flops_per_token
from jaxscale.models.traced_flops import traced_training_flops_per_token
from jaxscale.telemetry.memory import memory_metrics
from jaxscale.telemetry.meter import StepMeter
from jaxscale.telemetry.mfu import Peak, mfu
from jaxscale.telemetry.peak import device_peak
from jaxscale.telemetry.process import seconds_since_process_start
from jaxscale.training.job import Job
from jaxscale.training.loop import HostMetrics
from jaxscale.training.outputs import Outputs
from jaxscale.training.precision import compute_dtype


class NonFiniteLoss(UserError):
    """The loss or its gradient is not a number; the state is that of the step before."""


def model_flops_per_token(job: Job) -> float:
    """FLOPs of forward and backward a token, in the run's convention; counted in the trace of a module of one's own."""
    length = job.config.data.sequence_length
    if job.config.model.build is not None:
        return traced_training_flops_per_token(job.model, length)
    convention = job.config.telemetry.flops
    return training_flops_per_token(resolve(job.config.model), length, convention=convention)


def run_peak(job: Job) -> Peak:
    """The ceiling that the run's utilization is measured against."""
    placement = job.placement
    dtype = compute_dtype(placement.plan.precision, placement.platform)
    return device_peak(placement.mesh.devices.flat[0], dtype.name)


class Observer:
    """Turns step metrics into log records. Raises NonFiniteLoss where the run's policy is to stop."""

    def __init__(
        self,
        job: Job,
        outputs: Outputs,
        meter: StepMeter,
        peak: Peak,
        last_checkpoint: Callable[[], int | None],
    ) -> None:
        self._job, self._outputs, self._meter, self._peak = job, outputs, meter, peak
        self._last_checkpoint = last_checkpoint
        self.flops_per_token = model_flops_per_token(job)
        self.first_step_seconds: float | None = None

    def __call__(self, done: int, metrics: HostMetrics) -> None:
        training = self._job.config.training
        if self.first_step_seconds is None:
            self.first_step_seconds = seconds_since_process_start()
        if not metrics["finite"]:
            self._not_finite(done, training)
        if done % self._job.config.telemetry.log_every == 0 or done in {1, training.steps}:
            self._log(done, metrics)

    def _log(self, done: int, metrics: HostMetrics) -> None:
        job = self._job
        rates = self._meter.report()
        utilization = mfu(
            model_flops_per_token=self.flops_per_token,
            tokens_per_second=rates["tokens_per_second"],
            num_devices=job.placement.mesh.size,
            peak=self._peak,
        )
        shown = {name: metrics[name] for name in ("loss", "grad_norm", "learning_rate")}
        tokens = done * job.config.training.global_batch * job.config.data.sequence_length
        memory = memory_metrics(job.placement.mesh.local_devices)
        record = {"step": done, **shown, **rates, "mfu": utilization, "tokens": tokens, **memory}
        self._outputs.record(record)

    def _not_finite(self, done: int, training: TrainingSection) -> None:
        step = done - 1
        origins = "\n  ".join(str(origin) for origin in self._job.batches.describe(step)[:8])
        message = (
            f"the loss or gradient of step {done} is not finite; its batch ({step}) holds\n  {origins}\n"
            f"last checkpoint: {self._last_checkpoint()}"
        )
        if training.on_nonfinite == "stop":
            raise NonFiniteLoss(
                f"{message}. The update was not made. Lower the learning rate, or go on without such batches "
                "with training.on_nonfinite=skip"
            )
        self._outputs.progress.note(f"skipped: {message}")
