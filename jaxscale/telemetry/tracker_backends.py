"""Each tracking library behind the same three calls; its package is passed in, imported only when chosen."""

import html
import importlib
import json
import os
import sqlite3
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from jaxscale.telemetry.goodput import goodput
from jaxscale.telemetry.journal import EVENTS_FILE, read_events
from jaxscale.telemetry.prometheus import GAUGES

_PROJECT = "jaxscale"
_MLFLOW_MAX_PARAMS = 100
_MLFLOW_MAX_CHARACTERS = 500


@dataclass(frozen=True)
class Run:
    """What a tracker is told about a run; `start_step` is where it resumed."""

    directory: Path
    name: str
    config: Mapping[str, Any]
    start_step: int


class TensorBoard:
    """Event files under `tensorboard/` in the run."""

    def __init__(self, package: ModuleType, run: Run) -> None:
        self._writer = package.SummaryWriter(
            logdir=str(run.directory / "tensorboard"),
            purge_step=run.start_step + 1 if run.start_step else None,
            flush_secs=10,
            filename_suffix=f".from-{run.start_step}",  # Else a quick restart would overwrite.
        )
        self.text(run.start_step, "config", yaml.safe_dump(dict(run.config), sort_keys=False))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, textwrap.indent(text, "    ", lambda _: True), step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run; its id is kept with the run so that resuming continues it."""

    def __init__(self, package: ModuleType, run: Run) -> None:
        self._html = package.Html
        self._run = package.init(
            project=_PROJECT,
            name=run.name,
            id=_kept_id(run, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(run.directory),
            config=dict(run.config),
            settings=package.Settings(console="off"),
        )
        # Our own step as the x axis: W&B's must only rise, but a resumed run repeats some steps.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({**values, "step": step})

    def text(self, step: int, name: str, text: str) -> None:
        self._run.log({name: self._html(f"<pre>{html.escape(text)}</pre>"), "step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run on the server that MLFLOW_TRACKING_URI names, or MLflow's default store."""

    def __init__(self, package: ModuleType, run: Run) -> None:
        self._client = package.MlflowClient()
        self._metric = package.entities.Metric
        self._id = _kept_id(run, "mlflow", lambda: self._create(package, run))
        self._client.update_run(self._id, status="RUNNING")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def text(self, step: int, name: str, text: str) -> None:
        self._client.log_text(self._id, text, f"{name}/{step}.txt")

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _create(self, package: ModuleType, run: Run) -> str:
        found = self._client.get_experiment_by_name(_PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(_PROJECT)
        created = self._client.create_run(experiment, run_name=run.name)
        params = [
            package.entities.Param(key, str(value)[:_MLFLOW_MAX_CHARACTERS])
            for key, value in _flat(run.config)
        ]
        self._client.log_batch(created.info.run_id, params=params[:_MLFLOW_MAX_PARAMS])
        return str(created.info.run_id)


class Trackio:
    """A local-first Trackio run."""

    def __init__(self, package: ModuleType, run: Run) -> None:
        self._markdown = package.Markdown
        self._run = package.init(
            project=_PROJECT,
            name=run.name,
            config=dict(run.config),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        self._run.log({name: self._markdown(textwrap.indent(text, "    "))}, step=step)

    def close(self) -> None:
        self._run.finish()


class OpenTelemetry:
    """Gauges `jaxscale.NAME`, sent by OTLP over HTTP to where the standard variables say (OTEL_EXPORTER_OTLP_ENDPOINT).

    They are read when they are sent (OTEL_METRIC_EXPORT_INTERVAL); a server that does not answer is the SDK's to log.
    """

    def __init__(self, package: ModuleType, run: Run) -> None:
        sdk = importlib.import_module("opentelemetry.sdk.metrics")
        sending = importlib.import_module("opentelemetry.sdk.metrics.export")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": _PROJECT}
        self._provider = sdk.MeterProvider(
            [sending.PeriodicExportingMetricReader(package.OTLPMetricExporter())],
            resource=resources.Resource.create({**name, "service.instance.id": run.name}),
        )
        self._meter = self._provider.get_meter(_PROJECT)
        self._gauges: dict[str, Any] = {}
        self._about = {"run": run.name}
        self._meter.create_observable_gauge(
            f"{_PROJECT}.goodput", [_goodput_of(run)], "1", "Useful share of wall time"
        )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in {"step": step, **values}.items():
            self._gauge(name).set(value, self._about)

    def text(self, step: int, name: str, text: str) -> None:
        """Metrics only."""

    def close(self) -> None:
        self._provider.shutdown()

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            _, words = GAUGES.get(name, ("", ""))
            unit = "s" if name.endswith("_seconds") else "By" if name.endswith("_bytes") else "1"
            self._gauges[name] = self._meter.create_gauge(f"{_PROJECT}.{name}", unit, words)
        return self._gauges[name]


def _goodput_of(run: Run) -> Callable[[Any], list[Any]]:
    """Asked whenever metrics are sent, by a thread of the SDK."""
    observation = importlib.import_module("opentelemetry.metrics").Observation

    def observe(_options: Any) -> list[Any]:
        found = goodput(read_events(run.directory / EVENTS_FILE))
        return [] if found is None else [observation(found.ratio, {"run": run.name})]

    return observe


Backend = TensorBoard | WeightsAndBiases | MLflow | Trackio | OpenTelemetry


@dataclass(frozen=True)
class BackendEntry:
    """How to import, start and excuse a tracker; `failures` are the exceptions that are its own trouble."""

    package: str
    start: Callable[[ModuleType, Run], Backend]
    failures: Callable[[ModuleType], tuple[type[Exception], ...]]
    install: str
    hint: str


BACKENDS: Mapping[str, BackendEntry] = {
    "tensorboard": BackendEntry(
        package="tensorboardX",
        start=TensorBoard,
        failures=lambda _: (OSError,),
        install="pip install tensorboardX",
        hint="Check that the run directory can be written.",
    ),
    "wandb": BackendEntry(
        package="wandb",
        start=WeightsAndBiases,
        failures=lambda package: (OSError, package.Error),
        install="pip install 'jaxscale[wandb]'",
        hint="Run `wandb login`, or set WANDB_MODE=offline.",
    ),
    "mlflow": BackendEntry(
        package="mlflow",
        start=MLflow,
        failures=lambda package: (OSError, package.exceptions.MlflowException),
        install="pip install 'jaxscale[mlflow]'",
        hint="Check MLFLOW_TRACKING_URI.",
    ),
    "trackio": BackendEntry(
        package="trackio",
        start=Trackio,
        # Trackio has no error class of its own.
        failures=lambda _: (OSError, RuntimeError, ValueError, sqlite3.Error),
        install="pip install 'jaxscale[trackio]'",
        hint="Check TRACKIO_DIR and TRACKIO_SPACE_ID.",
    ),
    "opentelemetry": BackendEntry(
        package="opentelemetry.exporter.otlp.proto.http.metric_exporter",
        start=OpenTelemetry,
        failures=lambda _: (OSError, ValueError),
        install="pip install 'jaxscale[opentelemetry]'",
        hint="Check the variables that begin with OTEL_.",
    ),
}


def _kept_id(run: Run, tracker: str, make: Callable[[], str]) -> str:
    """The tracker's id of this run: made once, kept in the run directory."""
    path = run.directory / "trackers.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if tracker not in kept:
        kept[tracker] = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept))
    return str(kept[tracker])


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `("a.b", 1)`."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
