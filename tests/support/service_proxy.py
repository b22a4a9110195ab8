"""What a Kubernetes Service does, for tests: one address whose connections go to workers that say they are ready."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.rpc.channel import ChannelOptions, open_channel
from shared.server.grpc_server import READINESS

PROBE_EVERY_S = 0.1
PROBE_TIMEOUT_S = 1.0
CHUNK_BYTES = 64 * 1024
SERVING = health_pb2.HealthCheckResponse.SERVING


class ServiceProxy:
    """Spreads connections, in turn, over the endpoints whose last probe found them ready."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.ready: list[str] = []
        self._turn = 0
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._links: set[asyncio.Task[Any]] = set()

    def add(self, endpoint: str) -> None:
        """Begin to probe a backend; it may not be there yet."""
        self._probes[endpoint] = asyncio.create_task(self._probe(endpoint))

    def remove(self, endpoint: str) -> None:
        """Forget a backend; connections that it has go on."""
        self._probes.pop(endpoint).cancel()
        self._set(endpoint, ready=False)

    async def close(self) -> None:
        tasks = [*self._probes.values(), *self._links]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self.ready:
                return
            self._turn += 1
            host, _, port = self.ready[self._turn % len(self.ready)].rpartition(":")
            try:
                there_reader, there_writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            writer.close()

    async def _probe(self, endpoint: str) -> None:
        async with open_channel(endpoint, ChannelOptions(max_attempts=1)) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=READINESS)
            while True:
                try:
                    answer = await health.Check(request, timeout=PROBE_TIMEOUT_S)
                    self._set(endpoint, ready=answer.status == SERVING)
                except grpc.RpcError:
                    self._set(endpoint, ready=False)
                await asyncio.sleep(PROBE_EVERY_S)

    def _set(self, endpoint: str, *, ready: bool) -> None:
        self.ready = sorted({*self.ready, endpoint} if ready else {*self.ready} - {endpoint})


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass  # an end hung up
    finally:
        writer.close()


@asynccontextmanager
async def service_proxy(*endpoints: str) -> AsyncIterator[ServiceProxy]:
    """Listen on a free port for as long as the block."""
    proxy = ServiceProxy()
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        for endpoint in endpoints:
            proxy.add(endpoint)
        yield proxy
    finally:
        server.close()
        await proxy.close()
