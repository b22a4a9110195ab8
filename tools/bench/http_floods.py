"""Floods of a gateway: connections that drip, and clients that ask without a pause."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

CLOSED = "closed"
"""Outcome of a connection that the server ended."""
Outcomes = Counter[str]
"""Calls by how they ended."""
Flood = Callable[[str, Mapping[str, str], Outcomes], Awaitable[None]]
"""A flood of an endpoint, with tokens by their principals."""


@dataclass(frozen=True)
class HttpClients:
    """HTTP connections that all do the same, each anew when it is closed: a beginning, then a piece again and again."""

    count: int
    head: str
    piece: bytes = b""
    every_s: float = 0.5
    reads: bool = False

    async def __call__(self, endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
        host, _, port = endpoint.rpartition(":")
        head = self.head.format(key=tokens["loud"]).replace("\n", "\r\n").encode()

        async def one() -> None:
            while True:
                with suppress(OSError, asyncio.IncompleteReadError):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(head)
                    while not reader.at_eof():
                        if self.reads:
                            status = await reader.readuntil(b"\r\n")
                            outcomes[status.split()[1].decode()] += 1
                            head_left = await reader.readuntil(b"\r\n\r\n")
                            length = head_left.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                            await reader.readexactly(int(length))
                            writer.write(head)
                        else:
                            await asyncio.sleep(self.every_s)
                            writer.write(self.piece)
                        await writer.drain()
                outcomes[CLOSED] += 1
                await asyncio.sleep(0.05)

        await asyncio.gather(*(one() for _ in range(self.count)))


_KEYED = "Host: x\nAuthorization: Bearer {key}\n"
HTTP_FLOODS: Mapping[str, Flood] = {
    "512 heads that drip": HttpClients(512, "GET /v1/models HTTP/1.1\nHost: x\nX-A: ", b"y"),
    "256 bodies that drip": HttpClients(
        256, f"POST /v1/chat/completions HTTP/1.1\n{_KEYED}Content-Length: 100000\n\n{{{{", b"x"
    ),
    "64 clients without a pause": HttpClients(64, f"GET /v1/models HTTP/1.1\n{_KEYED}\n", reads=True),
}
