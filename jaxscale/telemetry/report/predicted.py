"""What a plan promised beside what the run measured, from `prediction.json` and the metrics."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxscale.telemetry.report.run import RunData


@dataclass(frozen=True)
class Steady:
    """A run behind its warm-up: medians over the logged windows of steps.

    step_seconds: wall time of a step, of which waiting_seconds went into waiting for data and saving checkpoints.
    spread: half the middle half of the windows' step times, over their median. peak_bytes: of the fullest device, where
    devices count. num_steps, num_windows: what the medians are of.
    """

    step_seconds: float
    waiting_seconds: float
    spread: float
    mfu: float | None
    peak_bytes: float | None
    num_steps: int
    num_windows: int


@dataclass(frozen=True)
class Pair:
    """One quantity. form: a name of `charts.FORMATS`, or `bytes`. measured: None where nothing counts it."""

    label: str
    predicted: float
    measured: float | None
    form: str

    @property
    def ratio(self) -> float | None:
        """Measured over predicted."""
        return self.measured / self.predicted if self.measured and self.predicted else None


def steady(run: RunData, since_step: int = 0) -> Steady | None:
    """The windows behind step `since_step` without warm-up; None where the run logged no more than its first.

    The first window has compilation in it and is never counted; the second starts with empty queues, and goes too where
    others are left.
    """
    logged = sorted(
        (r for r in run.records if r.get("step_seconds") and r["step"] > since_step),
        key=lambda record: record["step"],
    )
    kept = logged[2:] or logged[1:]
    if not kept:
        return None
    times = [float(record["step_seconds"]) for record in kept]
    peaks = [
        record["device_memory_peak_bytes"]
        for record in kept
        if _has(record, "device_memory_peak_bytes")
    ]
    mfus = [record["mfu"] for record in kept if _has(record, "mfu")]
    median = statistics.median(times)
    before = logged[len(logged) - len(kept) - 1]["step"]
    return Steady(
        step_seconds=median,
        waiting_seconds=statistics.median(_waiting(record) for record in kept),
        spread=_spread(times) / median,
        mfu=statistics.median(mfus) if mfus else None,
        peak_bytes=max(peaks) if peaks else None,
        num_steps=kept[-1]["step"] - before,
        num_windows=len(kept),
    )


def pairs(run: RunData) -> list[Pair]:
    """Predicted beside measured; empty where the run has no prediction.

    Both MFU are those of the run's own convention and peak: they differ only by the time.
    """
    prediction = run.prediction
    seconds, tokens = _number(prediction, "step_seconds"), _number(prediction, "tokens_per_step")
    if not seconds or not tokens:
        return []
    found = steady(run, int(_number(prediction, "since_step") or 0))
    rows = [
        Pair("Step time", seconds, found.step_seconds if found else None, "seconds"),
        Pair(
            "Tokens per second",
            tokens / seconds,
            tokens / found.step_seconds if found else None,
            "compact",
        ),
    ]
    if found and found.mfu:
        rows.append(Pair("MFU", found.mfu * found.step_seconds / seconds, found.mfu, "percent"))
    peak = _number(prediction, "peak_bytes")
    if peak:
        rows.append(
            Pair("Peak memory of a device", peak, found.peak_bytes if found else None, "bytes")
        )
    return rows


def parts(prediction: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    """Components of `time_seconds` or `memory_bytes`, largest first."""
    values = prediction.get(key)
    if not isinstance(values, Mapping):
        return []
    numbers = [
        (str(name), float(v)) for name, v in values.items() if isinstance(v, int | float) and v
    ]
    return sorted(numbers, key=lambda part: -part[1])


def _waiting(record: Mapping[str, Any]) -> float:
    return float(record.get("data_wait_seconds") or 0.0) + float(
        record.get("checkpoint_seconds") or 0.0
    )


def _spread(times: list[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / 2


def _has(record: Mapping[str, Any], key: str) -> bool:
    return isinstance(record.get(key), int | float)


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else None
