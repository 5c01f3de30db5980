"""The metrics of each step, once they are known: logged at intervals, and judged."""

import statistics

from jaxscale.models.families import resolve
from jaxscale.models.flops import training_flops_per_token
from jaxscale.models.traced_flops import traced_training_flops_per_token
from jaxscale.telemetry.format import seconds_text
from jaxscale.telemetry.memory import memory_metrics
from jaxscale.telemetry.meter import StepMeter
from jaxscale.telemetry.mfu import Peak, mfu
from jaxscale.telemetry.peak import device_peak
from jaxscale.telemetry.process import seconds_since_process_start
from jaxscale.training.health.agreement import Agreement
from jaxscale.training.health.judge import Judge
from jaxscale.training.health.stragglers import (
    slow_devices,
    slow_devices_message,
    straggler_message,
    stragglers,
)
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
        self._slow_hosts: list[int] = []
        self._slow_devices: list[int] = []
        self.flops_per_token = model_flops_per_token(job)
        self.first_step_seconds: float | None = None

    def __call__(self, done: int, metrics: HostMetrics) -> None:
        training = self._job.config.training
        if self.first_step_seconds is None:
            self.first_step_seconds = seconds_since_process_start()
            self._say_first_step(self.first_step_seconds)
        self._judge(done, metrics)
        if done % self._job.config.telemetry.log_every == 0 or done in {1, training.steps}:
            self._log(done, metrics)

    def _say_first_step(self, seconds: float | None) -> None:
        if seconds is not None:
            words = f"the first step was done {seconds_text(seconds)} after the process started"
            self._outputs.progress.note(words)

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
        """The process whose own part of a step takes longest, and the one with the slowest devices; those that hold the
        others up are named once."""
        said = self._agreement.said
        if said is None:
            return {}
        self._name_once(
            stragglers(said.own_seconds, said.step_seconds),
            straggler_message(said.own_seconds, said.step_seconds, said.hosts),
            self._slow_hosts,
        )
        self._name_once(
            slow_devices(said.paces),
            slow_devices_message(said.paces, said.hosts),
            self._slow_devices,
        )
        most = max(said.own_seconds)
        found = {"slowest_process": said.own_seconds.index(most), "slowest_own_seconds": most}
        if said.paces:
            ratio = max(said.paces) / statistics.median_low(said.paces)
            slowest = said.paces.index(max(said.paces))
            found |= {"slowest_device_process": slowest, "slowest_device_ratio": ratio}
        return found

    def _name_once(self, slow: list[int], message: str | None, before: list[int]) -> None:
        if message is not None and slow != before:
            self._outputs.progress.note(message)
        before[:] = slow
