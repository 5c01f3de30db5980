"""The metrics of each step, once they are known: logged at intervals, and judged."""

from jaxscale.models.families import resolve
from jaxscale.models.flops import training_flops_per_token
from jaxscale.models.traced_flops import traced_training_flops_per_token
from jaxscale.telemetry.memory import memory_metrics
from jaxscale.telemetry.meter import StepMeter
from jaxscale.telemetry.mfu import Peak, mfu
from jaxscale.telemetry.peak import device_peak
from jaxscale.telemetry.process import seconds_since_process_start
from jaxscale.training.health.agreement import Agreement
from jaxscale.training.health.judge import Judge
from jaxscale.training.health.stragglers import straggler_message, stragglers
from jaxscale.training.job import Job
from jaxscale.training.loop import HostMetrics
from jaxscale.training.outputs import Outputs
from jaxscale.training.precision import compute_dtype


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
    """Turns step metrics into log records. Raises what the judge raises of a bad step."""

    def __init__(
        self,
        job: Job,
        outputs: Outputs,
        meter: StepMeter,
        peak: Peak,
        judge: Judge,
        agreement: Agreement,
    ) -> None:
        self._job, self._outputs, self._meter, self._peak = job, outputs, meter, peak
        self._judge, self._agreement = judge, agreement
        self._slow_before: list[int] = []
        self.flops_per_token = model_flops_per_token(job)
        self.first_step_seconds: float | None = None

    def __call__(self, done: int, metrics: HostMetrics) -> None:
        training = self._job.config.training
        if self.first_step_seconds is None:
            self.first_step_seconds = seconds_since_process_start()
        self._judge(done, metrics)
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
        if self._judge.history.bad_steps:
            shown["bad_steps"] = self._judge.history.bad_steps
        tokens = done * job.config.training.global_batch * job.config.data.sequence_length
        memory = memory_metrics(job.placement.mesh.local_devices)
        record = {"step": done, **shown, **rates, "mfu": utilization, "tokens": tokens, **memory}
        self._outputs.record(record | self._slowest())

    def _slowest(self) -> dict[str, float]:
        """The process whose own part of a step takes longest; hosts that hold the others up are named once."""
        said = self._agreement.said
        if said is None:
            return {}
        slow = stragglers(said.own_seconds, said.step_seconds)
        message = straggler_message(said.own_seconds, said.step_seconds, said.hosts)
        if message is not None and slow != self._slow_before:
            self._outputs.progress.note(message)
        self._slow_before = slow
        most = max(said.own_seconds)
        return {"slowest_process": said.own_seconds.index(most), "slowest_own_seconds": most}
