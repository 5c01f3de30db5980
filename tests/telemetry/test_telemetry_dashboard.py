"""The dashboard over HTTP: it shows what is there, and nobody gets more out of it or anything in."""

import http.client
import json
import os
import socket
import threading
import time
from html import escape
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from dead_mounts import dead_mount

from jaxscale.errors import UserError
from jaxscale.telemetry.dashboard.checkpoints import Newest, NewestCheckpoints
from jaxscale.telemetry.dashboard.runs import Runs
from jaxscale.telemetry.dashboard.server import DashboardServer
from jaxscale.telemetry.metrics import MetricsLog

SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    SCRIPT,
    "\"><img src=x onerror='alert(1)'>",
    "a&lt;b&quot;",
    "x..%2f..%2fetc%00",
    "javascript:alert(1)",
    "new\nline",
    "caf\udce9",  # A byte of another encoding, as the file system gives it.
)
SECRET = "root:x:0:0"
NOW = 1e9


def make_run(directory, *, steps=20, loss=2.0, config="training: {steps: 40}\n"):
    log = MetricsLog(directory / "metrics.jsonl")
    for step in range(1, steps + 1):
        log.write({"step": step, "loss": loss + 1 / step, "tokens_per_second": 1e5})
    log.close()
    (directory / "config.yaml").write_text(config)
    (directory / "plan.yaml").write_text("fsdp: 4\n")
    line = {"time": NOW, "kind": "start", "step": 0, "seconds": {"startup": 10.0}, "doing": "step"}
    with (directory / "events.jsonl").open("w") as file:
        for more in (
            {"born": NOW - 10, "planned_steps": 40},
            {"kind": "resume"},
            {"kind": "progress", "step": steps, "seconds": {"startup": 10.0, "step": 30.0}},
        ):
            line |= more
            file.write(json.dumps(line) + "\n")
    return directory


@pytest.fixture
def folder(tmp_path):
    make_run(tmp_path / "runs" / "first", loss=2.0)
    make_run(tmp_path / "runs" / "sweep" / "second", loss=3.0)
    (tmp_path / "outside.txt").write_text(SECRET)
    return tmp_path / "runs"


@pytest.fixture
def serve():
    servers = []

    def start(folder, host="127.0.0.1"):
        server = DashboardServer(Runs(folder), host, 0, clock=lambda: NOW + 60)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server, target="/", method="GET", **headers):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.putrequest(method, target, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def test_runs_stand_side_by_side(folder, serve) -> None:
    status, headers, page = ask(serve(folder))
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for name, loss in (("first", "2.0500"), ("sweep/second", "3.0500")):  # loss + 1 / 20.
        assert f"<a href='/run?name={quote(name, safe='')}'>{name}</a><small>fsdp 4" in page
        assert loss in page
    assert page.count("<b>75%</b>") == 2  # 30 of 40 seconds.
    assert page.count('aria-label="Training loss by training step: ') == 1


def test_only_chosen_runs_are_compared(folder, serve) -> None:
    page = ask(serve(folder), "/?run=first&run=nobody")[2]
    assert "Training loss by training step: first from" in page
    assert "sweep/second from" not in page
    assert page.count(" checked>") == 1


def test_a_run_has_a_page(folder, serve) -> None:
    page = ask(serve(folder), "/run?name=sweep%2Fsecond")[2]
    assert "<h1>sweep/second</h1>" in page
    assert "Goodput 75.0% <small>of 0:00:40</small>" in page
    assert "<b>training</b>: {steps: 40}" in page


def test_a_run_is_read_on_as_it_grows(folder, serve) -> None:
    server = serve(folder)
    for step, loss in ((21, 1.5), (22, 1.25)):
        log = MetricsLog(folder / "first" / "metrics.jsonl")
        log.write({"step": step, "loss": loss})
        for target in ("/", "/run?name=first"):
            assert f"{loss:.4f}" in ask(server, target)[2]
        log.close()


def test_a_run_that_went_back_is_read_anew(folder, serve) -> None:
    """Resuming replaces the metrics file by another one, which may be longer before anybody looks again."""
    server = serve(folder)
    ask(server, "/run?name=first")
    log = MetricsLog(folder / "first" / "metrics.jsonl")
    log.truncate_after(5)
    for step in range(6, 40):
        log.write({"step": step, "loss": 9.0, "tokens_per_second": 1e5})
    page = ask(server, "/run?name=first")[2]
    assert "to 9.0000 at step 39" in page
    losses = json.loads(page.split("id='chart-data'>")[1].split("<")[0])[0]["lines"][0]
    # 2 + 1 / step as before, and no step of what was dropped.
    assert [loss for step, loss in losses if step > 5] == [9.0] * 34
    assert len(losses) == 39


def test_half_and_damaged_lines_hide_nothing(folder, serve) -> None:
    with (folder / "first" / "metrics.jsonl").open("a") as file:
        file.write('not json\n{"step": 21, "loss": 1.125}\n{"step": 22, "lo')
    assert "1.1250" in ask(serve(folder))[2]


def test_data_for_scripts(folder, serve) -> None:
    status, headers, text = ask(serve(folder), "/runs.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    runs = {run["name"]: run for run in json.loads(text)}
    assert set(runs) == {"first", "sweep/second"}
    assert runs["first"]["loss"] == 2.05
    assert runs["first"]["goodput"]["ratio"] == 0.75


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_runs_are_text(tmp_path, serve, name) -> None:
    make_run(tmp_path / "runs" / name)
    server = serve(tmp_path / "runs")
    page = ask(server)[2]
    assert escape(name.encode(errors="replace").decode()) in page
    target = f"/run?name={quote(name, safe='', errors='surrogateescape')}"
    assert f"href='{target}'" in page
    status, _, own_page = ask(server, target)
    assert status == 200
    for text in (page, own_page):
        assert not any(bad in text for bad in ("<script>alert", "<img src=x", "href='javascript"))


@pytest.mark.parametrize(
    "target",
    [
        "/../outside.txt",
        "/..%2foutside.txt",
        "/assets/../../outside.txt",
        "/assets/..%2f..%2f..%2foutside.txt",
        "/assets/page.html",
        "/assets/",
        "/first/config.yaml",
        "/run?name=..%2F..",
        "/run?name=%2Fetc",
        "/run?name=first%2F..%2Fsweep%2Fsecond",
        "/run?name=first%00",
        "/run",
        "//127.0.0.1/run",
        "/%00",
        "http://127.0.0.1/nothing",
    ],
)
def test_there_is_no_way_out(folder, serve, target) -> None:
    status, _, page = ask(serve(folder), target)
    assert status == 404
    assert SECRET not in page


@pytest.mark.parametrize("name", ["config.yaml", "plan.yaml", "metrics.jsonl", "samples/1.txt"])
def test_links_out_of_the_directory_are_not_followed(folder, tmp_path, serve, name) -> None:
    make_run(folder / "sly")
    path = folder / "sly" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "outside.txt")
    (folder / "linked").symlink_to(make_run(tmp_path / "elsewhere"))
    server = serve(folder)
    page = ask(server)[2]
    assert "sly" not in page
    assert "linked" not in page
    assert ask(server, "/run?name=sly")[0] == 404


def test_a_pipe_in_place_of_a_file_hangs_nothing(folder, serve) -> None:
    make_run(folder / "piped")
    (folder / "piped" / "summary.json").unlink(missing_ok=True)
    os.mkfifo(folder / "piped" / "summary.json")
    status, _, page = ask(serve(folder))
    assert status == 200
    assert "piped" not in page


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
def test_nothing_can_be_written(folder, serve, method) -> None:
    before = sorted(folder.rglob("*"))
    status, headers, page = ask(serve(folder), "/run?name=first", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert "Content-Security-Policy" in headers
    assert "only be read" in page
    assert sorted(folder.rglob("*")) == before


def test_looking_changes_nothing(folder, serve) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    server = serve(folder)
    for target in ("/", "/run?name=first", "/runs.json"):
        ask(server, target)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize("target", ["/", "/run?name=first", "/nothing", "/assets/report.js"])
def test_the_browser_is_told_to_fetch_and_run_nothing_else(folder, serve, target) -> None:
    _, headers, page = ask(serve(folder), target)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe-inline" not in policy["style-src"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost:8765", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_another_sites_name_for_this_machine_gets_nothing(folder, serve, host, status) -> None:
    found, _, page = ask(serve(folder), "/", Host=host)
    assert found == status
    assert ("sweep/second" in page) == (status == 200)


def test_head_has_no_content(folder, serve) -> None:
    status, headers, text = ask(serve(folder), method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000


def test_it_listens_where_it_was_told_and_nowhere_else(folder, serve) -> None:
    server = serve(folder)
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as other:  # The whole of 127/8 is loopback; we are at .1 only.
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", server.server_address[1])) != 0


def test_the_other_loopback(folder, serve) -> None:
    if not _has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback")
    server = serve(folder, "::1")
    assert server.address.startswith("http://[::1]:")
    with urlopen(server.address, timeout=20) as answer:
        assert b"sweep/second" in answer.read()


def _has_ipv6_loopback() -> bool:
    if not socket.has_ipv6:
        return False
    with socket.socket(socket.AF_INET6) as one:
        try:
            one.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_a_port_in_use_is_the_users_to_mend(folder, serve) -> None:
    taken = serve(folder).server_address[1]
    with pytest.raises(UserError, match="another port with --port"):
        DashboardServer(Runs(folder), "127.0.0.1", taken)
    with pytest.raises(UserError, match="cannot listen"):
        DashboardServer(Runs(folder), "no.such.host.invalid", 0)


def test_no_runs_yet(tmp_path, serve) -> None:
    (tmp_path / "empty").mkdir()
    assert "No runs here yet" in ask(serve(tmp_path / "empty"))[2]


def test_the_directory_of_one_run_shows_that_run(folder, serve) -> None:
    assert "<a href='/run?name=first'>first</a>" in ask(serve(folder / "first"))[2]


def test_what_is_no_http_ends_politely(folder, serve) -> None:
    server = serve(folder)
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) as raw:
        raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        # It names no version of HTTP that has a status line.
        assert b"Bad Request" in b"".join(iter(lambda: raw.recv(4096), b""))
    assert ask(server)[0] == 200


def checkpoint_of(server):
    """What the list says of the one run's checkpoint, and why it says nothing."""
    (row,) = json.loads(ask(server, "/runs.json")[2])
    return row["checkpoint"], row["checkpoints_unseen"]


def test_checkpoints_outside_of_a_run_are_seen_a_moment_later(tmp_path, serve) -> None:
    other = tmp_path / "other"
    (other / "7").mkdir(parents=True)
    make_run(tmp_path / "runs/a", config=f"checkpoint: {{directory: {other}}}\n")
    server, until = serve(tmp_path / "runs"), time.monotonic() + 60
    while (found := checkpoint_of(server)) == (None, None) and time.monotonic() < until:
        time.sleep(0.05)
    assert found[0]["step"] == 7
    assert found[1] is None


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_is_said(tmp_path, serve, monkeypatch) -> None:
    """By the command's own function: in a process of its own, which the page does not wait for."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    make_run(tmp_path / "runs/a", config="checkpoint: {directory: 's3://bucket/<i>x'}\n")
    server, until = serve(tmp_path / "runs"), time.monotonic() + 60
    assert checkpoint_of(server) == (None, None)
    while (found := checkpoint_of(server)) == (None, None) and time.monotonic() < until:
        time.sleep(0.2)
    assert found[0] is None
    assert found[1].startswith("s3://bucket/<i>x: ")
    page = ask(server, "/run?name=a")[2]
    assert "unreachable" in page
    assert "<i>x" not in page


def test_checkpoints_that_never_answer_hold_no_page_up(tmp_path) -> None:
    other, run, now = tmp_path / "other", tmp_path / "run", [0.0]
    other.mkdir()
    make_run(run, config=f"checkpoint: {{directory: {other}}}\n")
    newest = NewestCheckpoints(clock=lambda: now[0])
    with dead_mount(other):
        assert newest.of(run) == Newest()
        now[0] = 20.0
        assert newest.of(run) == Newest()
        now[0] = 30.0
        assert newest.of(run) == Newest(unseen=f"{other}: no answer for 30 s")
    (other / "9").mkdir()
    until = time.monotonic() + 60
    while newest.of(run).unseen and time.monotonic() < until:
        now[0] += 61
        time.sleep(0.05)
    assert newest.of(run).saved.step == 9
