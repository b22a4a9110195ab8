"""A local HTTP server that speaks the part of the Hugging Face Hub's API that is used, with faults on request."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40
POLL_S = 0.01


@dataclass
class FakeHub:
    """Repositories by id, and how to misbehave."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private_token: str = ""
    """When set, nothing is there without it."""
    fail_with: dict[str, list[int]] = field(default_factory=dict)
    """Status codes for the next requests of a file (or of "api")."""
    answer_with: dict[str, bytes] = field(default_factory=dict)
    """Bytes that are sent instead of "api"'s."""
    truncate: list[int] = field(default_factory=list)
    """After how many bytes the next downloads of weights break off."""
    pause_after: list[int] = field(default_factory=list)
    """After how many bytes the next downloads of weights send nothing more until `go_on`."""
    go_on: threading.Event = field(default_factory=threading.Event)
    replace: dict[str, bytes] = field(default_factory=dict)
    """Bytes that are sent instead of a file's."""
    redirect_to: str = ""
    """Where weights are sent on to."""
    redirect_api_to: str = ""
    """Where questions about repositories are sent on to."""
    commit: str = COMMIT
    """What branches and tags stand for."""
    gate: threading.Event | None = None
    """Held back until set."""
    requests: Counter[str] = field(default_factory=Counter)
    tokens: list[str] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        if hub.gate is not None:
            hub.gate.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        if path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"))
        else:
            repository, _, rest = path.lstrip("/").partition("/resolve/")
            self._file(repository, rest.partition("/")[2])

    def _info(self, path: str) -> None:
        repository, _, revision = path.partition("/revision/")
        self.hub.requests["api"] += 1
        if self.hub.fail_with.get("api"):
            self._send(self.hub.fail_with["api"].pop(0), b"{}")
        elif self.hub.redirect_api_to and not self.path.endswith("?again"):
            self._send(307, b"", {"Location": self.hub.redirect_api_to.replace("{path}", self.path) + "?again"})
        elif "api" in self.hub.answer_with:
            self._send(200, self.hub.answer_with["api"])
        elif repository not in self.hub.repositories or self._is_hidden():
            self._send(401, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", "v1", self.hub.commit):
            self._send(404, b'{"error": "Revision not found"}', {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [_sibling(name, data) for name, data in self.hub.repositories[repository].items()]
            document = {"id": repository, "sha": self.hub.commit, "siblings": siblings}
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, name: str) -> None:
        self.hub.requests[name] += 1
        if self._is_hidden() and not self.path.endswith("?again"):
            self._send(401, b"")
            return
        if self.hub.gate is not None:
            self.hub.gate.wait(120)
        if self.hub.fail_with.get(name):
            self._send(self.hub.fail_with[name].pop(0), b"")
            return
        if self.hub.redirect_to and name.endswith(".safetensors") and not self.path.endswith("?again"):
            self._send(302, b"", {"Location": self.hub.redirect_to.replace("{path}", self.path) + "?again"})
            return
        data = self.hub.replace.get(name, self.hub.repositories[repository][name])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        body = data[start:]
        is_weights = name.endswith(".safetensors")
        pauses = is_weights and bool(self.hub.pause_after)
        faults = self.hub.pause_after if pauses else self.hub.truncate
        stop = faults.pop(0) if is_weights and faults else len(body)
        self._send(206 if start else 200, body, stop=stop)
        if pauses and self.hub.go_on.wait(120):
            with suppress(OSError):  # nobody may be there any more
                self.wfile.write(body[stop:])

    def _is_hidden(self) -> bool:
        token = self.headers.get("Authorization", "")
        return bool(self.hub.private_token) and token != f"Bearer {self.hub.private_token}"

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:stop])
        if stop is not None and stop < len(body):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@lru_cache(maxsize=16)
def _digests(data: bytes) -> tuple[str, str]:
    """What git and LFS know a file by."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    git_sha1, sha256 = _digests(data)
    sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1}
    if name.endswith(".safetensors"):
        sibling["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
    return sibling
