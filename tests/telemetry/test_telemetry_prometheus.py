"""The Prometheus endpoint as Prometheus reads it, and the Grafana board that asks for its metrics."""

import http.client
import json
import math
import re
import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jaxscale.errors import UserError
from jaxscale.telemetry.prometheus import CONTENT_TYPE, GAUGES, Exposition, PrometheusServer

BOARD = Path(__file__).parents[2] / "configs/grafana/jaxscale.json"
SECONDS = {"step": 30.0, "compile": 12.5}
LABELS = {"run": 'a "quoted" \\ name\nof two lines', "process": "3"}


def exposition() -> Exposition:
    return Exposition(LABELS, 100, lambda: SECONDS, clock=lambda: 1234.5)


def families(text: str) -> dict:
    """By name, as the client library's parser understands the text."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_values_are_read_back_by_the_client_library() -> None:
    shown = exposition()
    shown.update({"step": 10, "loss": 2.5, "mfu": 0.4, "host_memory_bytes": 3 * 2**30, "note": "x"})
    found = families(shown.text)
    assert found["jaxscale_loss"].samples[0].value == 2.5
    assert found["jaxscale_loss"].samples[0].labels == LABELS
    assert found["jaxscale_host_memory_bytes"].samples[0].value == 3 * 2**30
    assert found["jaxscale_planned_steps"].samples[0].value == 100
    assert found["jaxscale_last_record_timestamp_seconds"].samples[0].value == 1234.5
    times = found["jaxscale_process_time_seconds"]
    assert times.type == "counter"
    assert {s.labels["kind"]: s.value for s in times.samples} == SECONDS
    assert all(family.documentation for family in found.values())


def test_a_value_stays_until_there_is_a_newer_one() -> None:
    shown = exposition()
    shown.update({"step": 10, "loss": 2.5})
    shown.update({"step": 20, "eval_loss": 3.5})
    found = families(shown.text)
    values = [found[f"jaxscale_{name}"].samples[0].value for name in ("step", "loss", "eval_loss")]
    assert values == [20, 2.5, 3.5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-300, 0.1])
def test_every_float_survives(value) -> None:
    shown = exposition()
    shown.update({"step": 1, "loss": value})
    found = families(shown.text)["jaxscale_loss"].samples[0].value
    assert found == value or (math.isnan(found) and math.isnan(value))


def get(address: str, path: str, method: str = "GET"):
    host = address.removeprefix("http://").split("/")[0]
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request(method, path)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, answer.getheader("Content-Type"), content


def test_it_is_served_at_metrics_and_nowhere_else() -> None:
    shown = exposition()
    with PrometheusServer(shown, "127.0.0.1", free_port()) as server:
        assert get(server.address, "/metrics") == (200, CONTENT_TYPE, shown.text)
        shown.update({"step": 7, "loss": 1.0})
        assert "jaxscale_step{" in get(server.address, "/metrics?x=1")[2]
        assert get(server.address, "/")[0] == 404
        assert get(server.address, "/metrics/../etc/passwd")[0] == 404
        assert get(server.address, "/metrics", "POST")[0] == 501
    with pytest.raises(ConnectionRefusedError):
        get(server.address, "/metrics")


def test_processes_of_a_machine_take_one_port_after_the_other() -> None:
    port = free_port()
    with (
        PrometheusServer(exposition(), "127.0.0.1", port) as first,
        PrometheusServer(exposition(), "127.0.0.1", port) as second,
    ):
        assert first.address == f"http://127.0.0.1:{port}/metrics"
        assert port < int(second.address.split(":")[2].split("/")[0]) < port + 16


def test_where_it_cannot_listen_the_user_is_told() -> None:
    with pytest.raises(UserError, match=r"telemetry.prometheus_host=192\.0\.2\.1.*cannot listen"):
        PrometheusServer(exposition(), "192.0.2.1", 9400)  # An address for documentation.


def test_the_board_asks_for_what_there_is() -> None:
    board = json.loads(BOARD.read_text())
    everything = dict.fromkeys(GAUGES, 1.0)
    shown = exposition()
    shown.update(everything)
    names = {sample.name for f in families(shown.text).values() for sample in f.samples}
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in board["templating"]["list"]]
    used = {name for expression in asked for name in re.findall(r"jaxscale_\w+", expression)}
    assert used <= names
    assert {"jaxscale_loss", "jaxscale_process_time_seconds_total"} <= used
    for expression in asked:
        assert expression.count("(") == expression.count(")")
    # Panels lie on Grafana's grid of 24 columns and cover one another nowhere.
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return min(one.getsockname()[1], 65000)
