"""What a process measures, for Prometheus to fetch: `/metrics` in its text format, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import errno
import math
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from jaxscale.errors import UserError

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Processes of one machine take one port after the other.
_MOST_PROCESSES = 16

# Keys of a metrics record: the name of the metric and what it says.
GAUGES = {
    "step": ("step", "Optimizer steps made so far"),
    "tokens": ("tokens", "Tokens seen so far"),
    "loss": ("loss", "Training loss, nats per token"),
    "grad_norm": ("gradient_norm", "Global norm of the gradient"),
    "learning_rate": ("learning_rate", "Learning rate"),
    "tokens_per_second": ("tokens_per_second", "Tokens per second, of the whole run"),
    "mfu": ("mfu_ratio", "Model FLOPs utilization"),
    "step_seconds": ("step_seconds", "Wall seconds of a step"),
    "data_wait_seconds": ("data_wait_seconds", "Seconds of a step that waited for data"),
    "checkpoint_seconds": ("checkpoint_seconds", "Seconds of a step that a checkpoint held up"),
    "eval_loss": ("eval_loss", "Evaluation loss, nats per token"),
    "eval_perplexity": ("eval_perplexity", "Evaluation perplexity"),
    "device_memory_bytes": ("device_memory_bytes", "Memory of a device in use"),
    "host_memory_bytes": ("host_memory_bytes", "Memory of this process"),
}
PLANNED, RECORDED = "planned_steps", "last_record_timestamp_seconds"
TIME = "process_time_seconds_total"
PREFIX = "jaxscale_"


class Exposition:
    """The newest values of one process as text. seconds: its time by kind, asked where values are recorded."""

    def __init__(
        self,
        labels: Mapping[str, str],
        planned_steps: int,
        seconds: Callable[[], Mapping[str, float]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._labels, self._planned = dict(labels), planned_steps
        self._seconds, self._clock = seconds, clock
        self._values: dict[str, float] = {}
        self.text = self._rendered()

    def update(self, record: Mapping[str, Any]) -> None:
        """Take over the numbers of a metrics record; a loss that is not finite is one too."""
        self._values |= {k: float(record[k]) for k in GAUGES.keys() & record.keys()}
        self.text = self._rendered(
            self._clock()
        )  # One assignment: a request sees all or nothing of it.

    def _rendered(self, now: float | None = None) -> str:
        lines = self._family(PLANNED, "Steps of the whole run", "gauge", [({}, self._planned)])
        for key, (name, words) in GAUGES.items():
            if key in self._values:
                lines += self._family(name, words, "gauge", [({}, self._values[key])])
        if now is not None:
            lines += self._family(RECORDED, "When values were last recorded", "gauge", [({}, now)])
        spent = [({"kind": kind}, value) for kind, value in sorted(self._seconds().items())]
        lines += self._family(TIME, "Wall seconds of this process by use", "counter", spent)
        return "\n".join(lines) + "\n"

    def _family(
        self, name: str, words: str, kind: str, samples: list[tuple[dict[str, str], float]]
    ) -> list[str]:
        full = PREFIX + name
        return [
            f"# HELP {full} {words}",
            f"# TYPE {full} {kind}",
            *(f"{full}{_labels(self._labels | own)} {_number(value)}" for own, value in samples),
        ]


class PrometheusServer:
    """Answers to `GET /metrics` from a thread of its own until it is closed.

    Raises UserError where neither the port nor any of the next ones can be had.
    """

    def __init__(self, exposition: Exposition, host: str, port: int) -> None:
        self._server = _listen(exposition, host, port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="prometheus", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}{PATH}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    exposition: Exposition


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "jaxscale", ""
    timeout = 15

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = self.server.exposition.text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_words: object) -> None:
        """Says nothing: it is fetched every few seconds."""


def _listen(exposition: Exposition, host: str, port: int) -> _Server:
    for candidate in range(port, min(port + _MOST_PROCESSES, 65536)):
        try:
            server = _Server((host, candidate), _Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise UserError(
                f"telemetry.prometheus_host={host}, prometheus_port={port}: cannot listen there ({error})"
            ) from error
        server.exposition = exposition
        return server
    raise UserError(
        f"telemetry.prometheus_port={port}: it and the {_MOST_PROCESSES - 1} ports behind it are in use; choose another"
    )


def _labels(labels: Mapping[str, str]) -> str:
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{k}="{v.translate(escapes)}"' for k, v in labels.items()) + "}"


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
