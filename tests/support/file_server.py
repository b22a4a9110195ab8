"""A local server of files, by HTTP or HTTPS, with ETags, ranges, and faults on request."""

import hashlib
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.support.certificates import Party

POLL_S = 0.01


@dataclass
class FileServer:
    """Files by their paths, and how to misbehave."""

    files: dict[str, bytes] = field(default_factory=dict)
    fail_with: dict[str, list[int]] = field(default_factory=dict)
    """Status codes for the next GETs of a path; of `HEAD path` for the next HEADs."""
    headers: dict[str, str] = field(default_factory=dict)
    """Beside every failure."""
    truncate: list[int] = field(default_factory=list)
    """After how many bytes the next GETs break off."""
    on_get: dict[str, Any] = field(default_factory=dict)
    """Called before a path's next GET is answered."""
    ignores_ranges: bool = False
    requests: Counter[str] = field(default_factory=Counter)
    """By method and path."""
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path with query, and headers of every request."""
    endpoint: str = ""


@contextmanager
def file_server(party: Party | None = None, host: str = "127.0.0.1") -> Iterator[FileServer]:
    """Serve files, with a party's certificate by HTTPS."""
    files = FileServer()
    server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"served": files}))
    if party is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(party.cert_file, party.key_file)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    files.endpoint = f"{'https' if party is not None else 'http'}://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: FileServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        name = path if self.command == "GET" else f"{self.command} {path}"
        self.served.requests[f"{self.command} {path}"] += 1
        self.served.seen.append((self.command, self.path, dict(self.headers)))
        if self.command == "GET" and path in self.served.on_get:
            self.served.on_get.pop(path)()
        if self.served.fail_with.get(name):
            self._send(self.served.fail_with[name].pop(0), b"<secret of the server>", self.served.headers)
            return
        data = self.served.files.get(path)
        if data is None:
            self._send(404, b"")
            return
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if self.headers.get("If-Match", etag) != etag:
            self._send(412, b"")
            return
        start = 0
        if not self.served.ignores_ranges:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        stop = len(data)
        if self.command == "GET" and self.served.truncate:
            stop = self.served.truncate.pop(0)
        self._send(206 if start else 200, data[start:], {"ETag": etag}, stop)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])
        if stop is not None and stop < len(body):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
