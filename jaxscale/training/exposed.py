"""What a process measures, for Prometheus, where the configuration asks for it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from jaxscale.config.run import RunConfig
from jaxscale.telemetry.ledger import TimeLedger
from jaxscale.telemetry.prometheus import Exposition, PrometheusServer
from jaxscale.training.outputs import to_nobody


@contextmanager
def exposed(
    config: RunConfig, ledger: TimeLedger, say: Callable[[str], None]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Takes records, and answers to `/metrics` with the newest of them as long as the context is open."""
    section = config.telemetry
    if section.prometheus_port is None:
        yield to_nobody
        return
    labels = {"run": config.name, "process": str(jax.process_index())}
    exposition = Exposition(labels, config.training.steps, ledger.seconds)
    with PrometheusServer(exposition, section.prometheus_host, section.prometheus_port) as server:
        say(f"metrics for Prometheus: {server.address}")
        yield exposition.update
