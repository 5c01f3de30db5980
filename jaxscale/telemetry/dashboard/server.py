"""The dashboard's server: three kinds of page, two assets, no way to write and no path made of what was asked for."""

import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from jaxscale.errors import UserError
from jaxscale.telemetry.dashboard.pages import Row, asset, index_page, message_page, run_page
from jaxscale.telemetry.dashboard.parts import PALETTE
from jaxscale.telemetry.dashboard.runs import Runs
from jaxscale.telemetry.status import status_data

HTML, JSON = "text/html; charset=utf-8", "application/json"
_ASSETS = {
    "report.css": "text/css; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "report.js": "text/javascript; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
}
# Nothing from anywhere else, nothing inline but the lengths of bars; nobody frames the page or learns its address.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; style-src-attr 'unsafe-inline'; script-src 'self'; "
        "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Query = dict[str, list[str]]


@dataclass(frozen=True)
class Answer:
    status: HTTPStatus
    kind: str
    content: str


class DashboardServer(ThreadingHTTPServer):
    """Serves the runs of a directory. Raises UserError where the port cannot be had."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, runs: Runs, host: str, port: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.runs, self.clock, self.lock = runs, clock, threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen on {host}:{port} ({error}); choose another port with --port, or 0 for any free one"
            ) from error

    @property
    def address(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def answer(self, target: str) -> Answer:
        """What is at a request's target. One at a time: a reader of files gains nothing by threads."""
        parts = urlsplit(target)
        query = parse_qs(parts.query, errors="surrogateescape")
        with self.lock:
            if parts.path == "/":
                return Answer(HTTPStatus.OK, HTML, self._index(query))
            if parts.path == "/run":
                return self._run(query)
            if parts.path == "/runs.json":
                return Answer(HTTPStatus.OK, JSON, self._data())
        name = parts.path.removeprefix("/assets/")
        if parts.path.startswith("/assets/") and name in _ASSETS:
            return Answer(HTTPStatus.OK, _ASSETS[name], asset(name))
        return _not_found("There is no such page.")

    def _index(self, query: Query) -> str:
        found = self.runs.found()
        # Without a choice the newest ones; an empty choice is one too, but a form does not send it.
        asked = [name for name in query.get("run", []) if name in found]
        chosen = (asked or list(found))[:PALETTE]
        rows = []
        for name, path in found.items():
            data = self.runs.whole(name, path) if name in chosen else None
            rows.append(Row(name, self.runs.status(name, path, self.clock()), data))
        return index_page(rows, str(self.runs.root))

    def _run(self, query: Query) -> Answer:
        name = query.get("name", [""])[0]
        path = self.runs.found().get(name)
        if path is None:
            return _not_found("There is no run of that name (any more).")
        now = self.clock()
        row = Row(name, self.runs.status(name, path, now), self.runs.whole(name, path))
        return Answer(HTTPStatus.OK, HTML, run_page(row, now))

    def _data(self) -> str:
        now = self.clock()
        rows = {name: self.runs.status(name, path, now) for name, path in self.runs.found().items()}
        return json.dumps([status_data(row, now) | {"name": name} for name, row in rows.items()])


def _not_found(words: str) -> Answer:
    return Answer(HTTPStatus.NOT_FOUND, HTML, message_page("Not found", words))


class _Handler(BaseHTTPRequestHandler):
    server: DashboardServer
    server_version, sys_version = "jaxscale", ""
    protocol_version = "HTTP/1.1"
    timeout = 15

    def do_GET(self) -> None:
        self._send(self._answer(), with_content=True)

    def do_HEAD(self) -> None:
        self._send(self._answer(), with_content=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no GET or HEAD, and what is no HTTP. A body that may follow is not read."""
        self.close_connection = True
        unknown_method = code == HTTPStatus.NOT_IMPLEMENTED
        status = HTTPStatus.METHOD_NOT_ALLOWED if unknown_method else HTTPStatus(code)
        words = (
            "This page can only be read." if unknown_method else explain or message or status.phrase
        )
        self._send(Answer(status, HTML, message_page(status.phrase, words)), with_content=True)

    def _answer(self) -> Answer:
        if not self._is_for_us():
            words = "This page answers to the name or address of its own machine only."
            return Answer(
                HTTPStatus.MISDIRECTED_REQUEST, HTML, message_page("Not this host", words)
            )
        return self.server.answer(self.path)

    def _is_for_us(self) -> bool:
        """A page of another site may have its name lead here (DNS rebinding): then the browser says that name."""
        asked = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        bound = str(self.server.server_address[0])
        return asked in {"localhost", bound} or _is_address(asked)

    def _send(self, answer: Answer, *, with_content: bool) -> None:
        content = answer.content.encode("utf-8", errors="replace")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Allow", "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_words: object) -> None:
        """Says nothing: a page that asks every few seconds would fill the terminal."""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
