"""Issuer of tests with a login by device code: its document, its two endpoints and its keys, over HTTP on loopback."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from hotslot.clients.device_login import DOCUMENT, GRANT
from tests.support.issuer import Key, signed

DEVICE_CODE, USER_CODE = "device-code-1", "WXYZ-1234"


@dataclass
class DeviceIssuer:
    """What it answers to questions for a token, one after the other; the last one again and again."""

    key: Key
    answers: list[dict[str, Any] | None] = field(default_factory=lambda: [{"error": "authorization_pending"}, None])
    """None is a token."""
    claims: dict[str, Any] = field(default_factory=dict)
    document: Callable[[dict[str, Any]], dict[str, Any]] = lambda document: document
    """Changes the document."""
    interval_s: float = 1
    asked: list[dict[str, str]] = field(default_factory=list)
    """Forms that came."""
    url: str = ""

    @contextmanager
    def running(self) -> Iterator["DeviceIssuer"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    @property
    def keys_url(self) -> str:
        return f"{self.url}/keys"

    def token(self) -> str:
        return signed(self.key, iss=self.url, **self.claims)

    def answer(self, path: str, form: dict[str, str] | None) -> tuple[int, dict[str, Any]]:
        match path, form:
            case _, None if path == DOCUMENT:
                places = {"device_authorization_endpoint": f"{self.url}/device", "token_endpoint": f"{self.url}/token"}
                return 200, self.document({"issuer": self.url, **places})
            case "/keys", None:
                return 200, {"keys": [self.key.public_jwk()]}
            case "/device", {"client_id": "hotslot", "scope": "openid"}:
                begun = {"device_code": DEVICE_CODE, "user_code": USER_CODE, "verification_uri": f"{self.url}/page"}
                return 200, {**begun, "interval": self.interval_s, "expires_in": 60}
            case "/token", {"grant_type": grant, "device_code": code, "client_id": "hotslot"} if (grant, code) == (
                GRANT,
                DEVICE_CODE,
            ):
                told = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                return (200, {"access_token": self.token(), "token_type": "Bearer"}) if told is None else (400, told)
            case _:
                return 404, {"error": "invalid_request"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._tell(*issuer.answer(self.path, None))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = {name: values[0] for name, values in parse_qs(body).items()}
                issuer.asked.append(form)
                self._tell(*issuer.answer(self.path, form))

            def _tell(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        return Handler
