"""The HTTP server: uvicorn on a socket of ours, with bounds on connections, heads and idle time."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from gateway_service.errors import ApiError
from gateway_service.settings import GatewaySettings
from hotslot.endpoints import Endpoint, listen_endpoint
from shared.server.counters import BOUND_REFUSALS, CUT_OFF, METADATA, Counters
from shared.server.transport import http_context

BACKLOG = 1024
POLL_S = 0.01
CANCEL_S = 1.0
"""Time for requests that outlast the grace to end once they are cancelled."""
TOO_MANY = ApiError(
    503, "TOO_MANY_CONNECTIONS", "too many connections", kind="server_error", retry_after_s=1.0, is_retried=True
)


class BoundedProtocol(H11Protocol):
    """A connection: too many are refused, and a head must arrive in time. Refusals have OpenAI's form, too."""

    max_connections: int
    head_timeout_s: float
    counters: Counters
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Ends a stream whose reader sleeps.
        self.app_state = {**self.app_state, "transport": transport}
        if len(self.connections) > self.max_connections:
            self.counters.add(BOUND_REFUSALS, "connections")
            self._refuse(TOO_MANY)
            return
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._cut_off)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # uvicorn's annotation leaves out that there is none before the first request.
        cycle: RequestResponseCycle | None = self.cycle
        is_served = cycle is not None and not cycle.response_complete
        if is_served or self.transport.is_closing():
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._cut_off)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "MALFORMED_REQUEST", "the request is not HTTP/1.1, or its head is too large"))

    def _refuse(self, error: ApiError) -> None:
        body = json.dumps(error.body()).encode()
        headers = {**error.headers(), "content-type": "application/json", "content-length": str(len(body))}
        pairs = [(name, value) for name, value in (headers | {"connection": "close"}).items()]
        for event in (h11.Response(status_code=error.status, headers=pairs), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _cut_off(self) -> None:
        self.counters.add(CUT_OFF, "head")
        self.transport.abort()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


MAX_HEADERS = 100
"""Headers of one request."""


class BoundedHeads:
    """ASGI middleware that refuses heads which came in one piece, and so past h11's own bound."""

    def __init__(self, app: ASGIApp, max_bytes: int, counters: Counters) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        size_bytes += sum(len(name) + len(value) for name, value in scope["headers"])
        if size_bytes <= self._max_bytes and len(scope["headers"]) <= MAX_HEADERS:
            await self._app(scope, receive, send)
            return
        self._counters.add(BOUND_REFUSALS, METADATA)
        most = f"{self._max_bytes:,} bytes, and {MAX_HEADERS} headers,"
        error = ApiError(431, "HEAD_TOO_LARGE", f"the head is larger than the {most} that are taken")
        headers = {**error.headers(), "connection": "close"}
        await JSONResponse(error.body(), error.status, headers)(scope, receive, send)


class _Server(uvicorn.Server):
    """uvicorn without its own handling of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """A server that listens."""

    def __init__(self, server: uvicorn.Server, sock: socket.socket, serving: "asyncio.Task[None]") -> None:
        self._server = server
        self._serving = serving
        self.address = sock.getsockname()

    @property
    def port(self) -> int:
        """Port that it listens on; 0 for a Unix socket."""
        return int(self.address[1]) if isinstance(self.address, tuple) else 0

    @property
    def connections(self) -> set[Any]:
        """Open connections, as uvicorn's protocols."""
        return set(self._server.server_state.connections)

    @property
    def num_connections(self) -> int:
        """Open connections."""
        return len(self._server.server_state.connections)

    @property
    def num_running(self) -> int:
        """Requests that are being served."""
        return len(self._server.server_state.tasks)

    async def stop(self) -> None:
        """Take no more connections, let requests finish for the grace, and end the others."""
        self._server.should_exit = True
        await self._serving
        running = set(self._server.server_state.tasks)
        if running:
            await asyncio.wait(running, timeout=CANCEL_S)


@asynccontextmanager
async def serve_http(
    app: ASGIApp, settings: GatewaySettings, counters: Counters | None = None
) -> AsyncIterator[HttpServer]:
    """Serve until the block is left; raises OSError for an address that cannot be had."""
    counters = counters or Counters()
    bounds = {
        "max_connections": settings.gateway_max_connections,
        "head_timeout_s": settings.gateway_head_timeout_s,
        "counters": counters,
    }
    protocol = type("ConfiguredProtocol", (BoundedProtocol,), bounds)
    config = uvicorn.Config(
        BoundedHeads(app, settings.gateway_max_header_bytes, counters),
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=settings.gateway_max_header_bytes,
        timeout_keep_alive=round(settings.gateway_idle_s),
        timeout_graceful_shutdown=round(settings.grace_s),
        backlog=BACKLOG,
    )
    config.load()
    config.ssl = http_context(settings.gateway_transport)
    server = _Server(config)
    with _listening(listen_endpoint(settings.gateway_listen), settings) as sock:
        serving = asyncio.create_task(server.serve([sock]))
        while not server.started:
            if serving.done():
                serving.result()
                raise OSError(f"{settings.gateway_listen}: the server ended before it listened")
            await asyncio.sleep(POLL_S)
        running = HttpServer(server, sock, serving)
        try:
            yield running
        finally:
            await running.stop()


@contextlib.contextmanager
def _listening(address: Any, settings: GatewaySettings) -> Iterator[socket.socket]:
    if not isinstance(address, Endpoint):
        path = Path(str(address).removeprefix("unix:"))
        with socket.socket(socket.AF_UNIX) as sock:
            path.unlink(missing_ok=True)
            sock.bind(str(path))
            sock.listen(BACKLOG)
            yield sock
        path.unlink(missing_ok=True)
        return
    family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    # asyncio sends at once (TCP_NODELAY) on sockets that name their protocol; others wait 40 ms for an acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not address.is_wildcard))
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Also for what is closed while its reader sleeps: the kernel keeps that no longer.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(settings.gateway_stall_s * 1e3))
        sock.bind(where)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        yield sock
