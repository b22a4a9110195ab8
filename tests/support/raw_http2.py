"""gRPC by hand over HTTP/2, as a hostile client speaks it: calls for some microseconds each, reset as soon as begun.

gRPC's own clients cost as much as the servers that they call, so that a flood of theirs shows little.
"""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
NAMES = {HEADERS: "headers", RST_STREAM: "reset", GOAWAY: "goaway"}
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CANCEL = struct.pack(">I", 8)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW_SIZE = 4
WIDE_BYTES = 2**30
"""Window of each stream, so that no answer ever waits for this client."""

Header = tuple[str, str]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(headers: Iterable[Header]) -> bytes:
    """Headers as literals, without tables."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    length, rest = b"\x7f", len(data) - 127
    while rest >= 128:
        length, rest = length + bytes([rest % 128 + 128]), rest // 128
    return length + bytes([rest]) + data


def grpc_message(data: bytes) -> bytes:
    """A message with gRPC's prefix."""
    return b"\x00" + struct.pack(">I", len(data)) + data


class RawConnection:
    """One connection; what the server sends is counted by kind of frame, and thrown away."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, window_bytes: int = WIDE_BYTES
    ) -> None:
        self._reader, self._writer, self._authority = reader, writer, authority
        self._next_stream = 1
        self.seen: Counter[str] = Counter()
        writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window_bytes)))
        self._reading = asyncio.create_task(self._read())

    @property
    def is_closed(self) -> bool:
        """True once the server has closed it."""
        return self._reading.done()

    def block(self, method: str, metadata: Iterable[Header]) -> bytes:
        """Headers of a call, to be sent any number of times."""
        head = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", self._authority)]
        return header_block([*head, ("te", "trailers"), ("content-type", "application/grpc"), *metadata])

    def call(self, block: bytes, message: bytes | None) -> bytes:
        """Frames of a call, and the number of its stream, which follows the ones before."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        data = frame(DATA, END_STREAM, stream, grpc_message(message)) if message is not None else b""
        return frame(HEADERS, END_HEADERS, stream, block) + data

    def cancelled_call(self, block: bytes, message: bytes | None) -> bytes:
        """Frames of a call that its client gives up at once."""
        stream = self._next_stream
        return self.call(block, message) + frame(RST_STREAM, 0, stream, CANCEL)

    async def send(self, data: bytes) -> None:
        """Raises OSError once the server has closed the connection."""
        if self.is_closed:
            raise ConnectionResetError("the server has closed the connection")
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """End it."""
        self._reading.cancel()
        self._writer.close()
        with suppress(OSError, asyncio.CancelledError):
            await self._reading

    async def _read(self) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await self._reader.readexactly(9)
                size, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                payload = await self._reader.readexactly(size)
                self.seen[NAMES.get(kind, "other")] += 1
                if kind in (SETTINGS, PING) and not flags & ACK:
                    self._writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))


@asynccontextmanager
async def raw_connection(
    endpoint: str, window_bytes: int = WIDE_BYTES, source: str | None = None
) -> AsyncIterator[RawConnection]:
    """A connection to a plaintext server, until the block is left; its answers wait beyond a window.

    `source` is the address that it comes from, where it is to be a certain one.
    """
    host, _, port = endpoint.rpartition(":")
    local = (source, 0) if source is not None else None
    opened = await asyncio.open_connection(host, int(port), local_addr=local)
    connection = RawConnection(*opened, endpoint, window_bytes)
    try:
        yield connection
    finally:
        await connection.close()
