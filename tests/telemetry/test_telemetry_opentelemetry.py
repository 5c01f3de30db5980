"""What a collector receives by OTLP: a small server of our own, and the official SDK and its messages."""

import gzip
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from jaxscale.telemetry.journal import EVENTS_FILE
from jaxscale.telemetry.trackers import Tracker, make_trackers

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    reason="opentelemetry is not installed",
)

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest


class Collector(HTTPServer):
    """Keeps the requests that come."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, ExportMetricsServiceRequest]] = []

    def values(self) -> dict[str, tuple[float, str, dict[str, str]]]:
        """Newest value, unit and attributes by name."""
        found = {}
        for _, request in self.received:
            for metric in request.resource_metrics[0].scope_metrics[0].metrics:
                point = metric.gauge.data_points[-1]
                value = point.as_double if point.HasField("as_double") else point.as_int
                about = {one.key: one.value.string_value for one in point.attributes}
                found[metric.name] = (value, metric.unit, about)
        return found


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append((self.path, ExportMetricsServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        """Says nothing."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}"
        )
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        yield server
        server.shutdown()
        thread.join()


def make(run: Path, **options: Any) -> Tracker:
    return make_trackers(["opentelemetry"], run_dir=run, config={}, run_name="my-run", **options)


def diary(run: Path) -> None:
    """Ten seconds, eight of them in steps that count."""
    common = {"doing": "step", "seconds": {}}
    events = [
        {"time": 0, "kind": "start", "step": 0, "born": 0, **common},
        {"time": 2, "kind": "resume", "step": 0, "doing": "step", "seconds": {"startup": 2}},
        {
            "time": 10, "kind": "progress", "step": 4, "doing": "step",
            "seconds": {"startup": 2, "step": 8},
        },
    ]  # fmt: skip
    (run / EVENTS_FILE).write_text("".join(json.dumps(event) + "\n" for event in events))


def test_a_collector_receives_what_was_logged_and_the_goodput(
    tmp_path: Path, collector: Collector
) -> None:
    diary(tmp_path)
    tracker = make(tmp_path)
    tracker.log(3, {"step": 3, "loss": 3.0, "mfu": 0.1})
    tracker.log(4, {"step": 4, "loss": 2.5, "step_seconds": 0.25, "tokens_per_second": 4096.0})
    tracker.log(4, {"step": 4, "eval_loss": 2.75, "grad_norm": math.nan})
    tracker.text(4, "sample", "text stays here")
    tracker.close()
    about = {"run": "my-run"}
    assert collector.values() == {
        "jaxscale.step": (4, "1", about),
        "jaxscale.loss": (2.5, "1", about),
        "jaxscale.mfu": (0.1, "1", about),
        "jaxscale.step_seconds": (0.25, "s", about),
        "jaxscale.tokens_per_second": (4096.0, "1", about),
        "jaxscale.eval_loss": (2.75, "1", about),
        "jaxscale.goodput": (0.8, "1", about),
    }
    path, request = collector.received[-1]
    assert path == "/v1/metrics"
    resource = {
        one.key: one.value.string_value for one in request.resource_metrics[0].resource.attributes
    }
    assert resource["service.name"] == "jaxscale"
    assert resource["service.instance.id"] == "my-run"
    assert resource["deployment.environment.name"] == "tests"


def test_a_name_of_ones_own_wins(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracker = make(tmp_path)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    (resource,) = (request.resource_metrics[0].resource for _, request in collector.received)
    assert ("service.name", "mine") in {(a.key, a.value.string_value) for a in resource.attributes}
    assert "jaxscale.goodput" not in collector.values(), "a run without a diary has none"


def test_a_collector_that_is_not_there_is_no_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    warnings: list[str] = []
    tracker = make(tmp_path, warn=warnings.append)
    for step in range(100):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert warnings == []
