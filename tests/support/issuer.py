"""Issuer of tests: signs JSON Web Tokens, and serves the keys to verify them with over HTTP on loopback."""

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://id.test"
AUDIENCE = "hotslot"


@dataclass(frozen=True)
class Key:
    """One key of an issuer."""

    kid: str
    algorithm: str = "ES256"
    private: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def public_jwk(self, **more: object) -> dict[str, Any]:
        kind: Any = {"E": ECAlgorithm, "R": RSAAlgorithm, "P": RSAAlgorithm}.get(self.algorithm[0])
        if self.algorithm == "EdDSA":
            kind = OKPAlgorithm
        jwk = kind.to_jwk(self.private.public_key(), as_dict=True)
        return {**jwk, "kid": self.kid, "use": "sig", "alg": self.algorithm, **more}


def rsa_key(kid: str, algorithm: str = "RS256", bits: int = 2048) -> Key:
    return Key(kid, algorithm, rsa.generate_private_key(65537, bits))


def ed25519_key(kid: str) -> Key:
    return Key(kid, "EdDSA", ed25519.Ed25519PrivateKey.generate())


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a token that says alice of acme, for ten minutes; None takes one away."""
    now_s = int(time.time())
    whole = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "iat": now_s,
        "exp": now_s + 600,
        "tenants": ["acme"],
        "scope": "openid read use",
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def signed(key: Key, headers: dict[str, Any] | None = None, **changes: Any) -> str:
    """A token with these claims."""
    return jwt.encode(claims(**changes), key.private, key.algorithm, headers={"kid": key.kid, **(headers or {})})


def assembled(header: dict[str, Any], payload: Any, signature: bytes = b"") -> str:
    """A token of any parts, as no library makes it."""
    parts = (json.dumps(header).encode(), payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (*parts, signature))


class JwksServer:
    """Serves a set of keys that a test changes, and counts how often it was read."""

    def __init__(self, *keys: Key) -> None:
        self.num_reads = 0
        self.publish(*keys)
        self.status = 200
        self.delay_s = 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"

    def publish(self, *keys: Key) -> None:
        self.body = json.dumps({"keys": [key.public_jwk() for key in keys]}).encode()

    def use_tls(self, cert_file: Path, key_file: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert_file, key_file)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = self.url.replace("http://", "https://")

    @contextmanager
    def running(self) -> "Iterator[JwksServer]":
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.num_reads += 1
                time.sleep(served.delay_s)
                self.send_response(served.status)
                self.send_header("Content-Length", str(len(served.body)))
                if served.status == 302:
                    self.send_header("Location", served.url)
                self.end_headers()
                self.wfile.write(served.body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        return Handler


def write_issuers(path: Path, jwks: str, **changes: Any) -> Path:
    """The file of issuers with one, `corp`, whose keys are at a place."""
    whole = {"issuer": ISSUER, "audience": [AUDIENCE], "jwks": jwks, "tenants": ["acme", "umbrella"], **changes}
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"issuers": {"corp": whole}}))
    new.replace(path)
    return path
