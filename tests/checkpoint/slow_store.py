"""An object store that may be told to answer no writes of arrays for a while: a proxy before the S3 server."""

import http.client
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_METHODS = ("GET", "PUT", "POST", "HEAD", "DELETE")
_OF_A_LINE = {"connection", "transfer-encoding", "content-length"}


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: str
    flowing: threading.Event

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT" and "/arrays/" in self.path:
            self.flowing.wait()
        server = http.client.HTTPConnection(self.target)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_A_LINE}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _OF_A_LINE:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(content)
        server.close()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def slow_s3() -> Iterator[threading.Event]:
    """Between its clients and the server at AWS_ENDPOINT_URL; while the event is not set, writes stand still."""
    address, flowing = os.environ["AWS_ENDPOINT_URL"], threading.Event()
    flowing.set()
    methods = {f"do_{method}": _Proxy.forward for method in _METHODS}
    state = {"target": urlsplit(address).netloc, "flowing": flowing}
    handler = type("Proxy", (_Proxy,), methods | state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
    try:
        yield flowing
    finally:
        flowing.set()
        os.environ["AWS_ENDPOINT_URL"] = address
        server.shutdown()
        thread.join()
        server.server_close()
