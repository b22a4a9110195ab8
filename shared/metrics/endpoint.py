"""HTTP endpoint of the metrics: GET /metrics on a port of its own, with bounds on connections, heads and idle time."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from hotslot.endpoints import Endpoint, listen_endpoint
from shared.metrics.exposition import CONTENT_TYPE, Readings
from shared.metrics.process import ProcessNumbers
from shared.metrics.scrapes import Refresh, Scrapes, at_once
from shared.metrics.settings import Observed
from shared.server.transport import check_listener, http_context
from shared.transport_settings import Transport

log = structlog.get_logger(__name__)

PATH = "/metrics"
MAX_CONNECTIONS = 32
MAX_HEAD_BYTES = 16 * 2**10
IDLE_S = 60.0
"""Time for which a connection is kept for its client's next scrape, and within which a head must have arrived."""
SEND_S = 10.0
END_OF_HEAD = b"\r\n\r\n"

Text = Callable[[], Awaitable[bytes]]


class MetricsEndpoint:
    """A listener that answers scrapes. Belongs to one event loop."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0

    async def listen(self, address: str, transport: Transport) -> asyncio.Server:
        """Begin to answer; raises OSError where the address is taken."""
        where = listen_endpoint(address)
        context = http_context(transport)
        if not isinstance(where, Endpoint):
            path = str(where).removeprefix("unix:")
            return await asyncio.start_unix_server(self._serve, path, limit=MAX_HEAD_BYTES, ssl=context)
        try:
            sock = _listening(where)
            server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_HEAD_BYTES, ssl=context)
        except OSError as exc:
            why = f"cannot listen on {address} for metrics: the port is taken or the address is not this machine's"
            raise OSError(errno.EADDRINUSE, why) from exc
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def close(self) -> None:
        """End all connections."""
        tasks = dict(self._connections)
        for writer in tasks.values():
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            if len(self._connections) <= MAX_CONNECTIONS:
                while await self._answer(reader, writer):
                    pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # A client that sleeps, has gone, or sends no request that could be one.
            pass
        finally:
            del self._connections[task]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; tells whether the connection stays open."""
        async with asyncio.timeout(IDLE_S):
            head = await reader.readuntil(END_OF_HEAD)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        target, _, version = rest.partition(" ")
        headers = {name.strip().lower(): value.strip().lower() for name, _, value in (x.partition(":") for x in lines)}
        # A request with a body is none of a scrape: what follows would be read as another request.
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        stays = version == "HTTP/1.1" and headers.get("connection", "") != "close" and not has_body
        if not version.startswith("HTTP/1."):
            status, body = "400 Bad Request", b"not HTTP/1.1\n"
            stays = False
        elif target.partition("?")[0] != PATH:
            status, body = "404 Not Found", b"only /metrics is served here\n"
        elif method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"GET /metrics\n"
        else:
            status, body = "200 OK", await self._text()
        kind = CONTENT_TYPE if status.startswith("200") else "text/plain"
        keep = "keep-alive" if stays else "close"
        answer = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: {keep}\r\n\r\n"
        )
        writer.write(answer.encode() + (b"" if method == "HEAD" else body))
        async with asyncio.timeout(SEND_S):
            await writer.drain()
        return stays


def _listening(where: Endpoint) -> socket.socket:
    """A socket that listens; `[::]` is IPv4 as well, which asyncio's own leaves out."""
    both = where.is_wildcard and ":" in where.host and socket.has_dualstack_ipv6()
    host = where.host if both or not where.is_wildcard else "0.0.0.0"
    family, _, _, _, address = socket.getaddrinfo(host, where.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address, family=family, dualstack_ipv6=both)


@dataclass(slots=True)
class Observation:
    """Metrics of a process: their text, and where they are served."""

    text: Text
    port: int = 0
    """Port of /metrics; 0 where it is served nowhere."""


async def _alone(own: bytes) -> bytes:
    """Tell what the process has itself."""
    return own


@asynccontextmanager
async def observed(
    service: str,
    settings: Observed,
    transport: Transport,
    sources: Sequence[Readings],
    picker_sources: Sequence[Readings] = (),
    *,
    refresh: Refresh = at_once,
    beside: Callable[[bytes], Awaitable[bytes]] = _alone,
) -> AsyncIterator[Observation]:
    """The metrics of a process, with those that every process has, served until the block is left where it is set.

    `beside` adds to the text. Raises InsecureTransportError where plaintext would leave the machine unasked, and
    OSError.
    """
    numbers = ProcessNumbers(service)
    scrapes = Scrapes(service, sources, (numbers.readings,), picker_sources, refresh)

    async def text() -> bytes:
        return await beside(await scrapes.text())

    observation = Observation(text)
    if not (address := settings.metrics_listen):
        yield observation
        return
    check_listener(address, transport)
    endpoint = MetricsEndpoint(text)
    server = await endpoint.listen(address, transport)
    observation.port = endpoint.port
    log.info("metrics_served", address=address, port=endpoint.port)
    watching = asyncio.create_task(numbers.watch_lag())
    try:
        yield observation
    finally:
        watching.cancel()
        server.close()
        await endpoint.close()
        await server.wait_closed()
