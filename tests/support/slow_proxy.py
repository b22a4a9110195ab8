"""A TCP proxy that delays, changes or cuts what passes and counts its bytes, for tests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class SlowProxy:
    """Between a client and a server on this machine."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.target_port = target_port
        """Of connections from now on."""
        self.delay_s = 0.0
        """Before every chunk of answers."""
        self.change: Callable[[bytes], bytes] = bytes
        """What becomes of each chunk of answers."""
        self.connections = 0
        self.bytes_up = 0
        """Passed on to the server."""
        self.bytes_down = 0
        """Passed on to clients."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.close()  # the server is not there just now
            return
        ends = {writer, upstream_writer}
        self._writers |= ends
        await asyncio.gather(
            self._pump(reader, upstream_writer, slow=False), self._pump(upstream_reader, writer, slow=True)
        )
        self._writers -= ends

    @property
    def is_used(self) -> bool:
        return bool(self._writers)

    def cut(self) -> None:
        """Break every connection at once, with whatever is on its way."""
        for writer in self._writers:
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        try:
            while chunk := await reader.read(65536):
                if slow and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(self.change(chunk) if slow else chunk)
                if slow:
                    self.bytes_down += len(chunk)
                else:
                    self.bytes_up += len(chunk)
                await writer.drain()
        except OSError:
            pass  # an end hung up: that is what some tests are about
        finally:
            writer.close()


@asynccontextmanager
async def slow_proxy(target_port: int) -> AsyncIterator[SlowProxy]:
    """Listen on a free port for as long as the block."""
    proxy = SlowProxy(target_port)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
