"""Bounds of connections and of the heads of calls, for every gRPC listener: the most that a peer costs unknown.

gRPC keeps those of connections; a call's metadata is counted here, before its caller is known. The bounds of messages
are in `shared.server.bounds`, and docs/bounds.md has both.
"""

import asyncio
from collections.abc import Awaitable, Collection

from hotslot.errors import FieldViolation, InvalidRequestError, StreamStalledError

MAX_STREAMS_A_CONNECTION = 4_096
"""Calls that run over one connection. Its client holds back more, or hears UNAVAILABLE before anything was done."""
MAX_METADATA_BYTES = 24 * 2**10
"""Bytes of a call's metadata: room for a token of 16 KiB."""
MAX_METADATA_ENTRIES = 96
"""Entries of a call's metadata."""
HANDSHAKE_S = 20.0
"""Longest time until TLS stands and HTTP/2 begins, from a connection's first moment."""
IDLE_S = 900.0
"""Time for which a connection without a call is kept."""
LEAST_BYTES_PER_S = 4 * 2**10
"""Least pace of a client's stream, beyond the time in which it may stall. At 10 kB/s an upload is taken."""


def connection_options(max_connections: int) -> list[tuple[str, int]]:
    """Options of a gRPC server."""
    return [
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_concurrent_streams", MAX_STREAMS_A_CONNECTION),
        # One bound: between the two gRPC refuses at random.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_S * 1e3)),
        ("grpc.http2.settings_timeout", round(HANDSHAKE_S * 1e3)),
        ("grpc.max_connection_idle_ms", round(IDLE_S * 1e3)),
    ]


def check_metadata(metadata: Collection[object]) -> None:
    """Raise InvalidRequestError for more entries than a call may have."""
    if len(metadata) > MAX_METADATA_ENTRIES:
        problem = f"found {len(metadata)} entries, at most {MAX_METADATA_ENTRIES} are taken"
        raise InvalidRequestError([FieldViolation("metadata", problem)])


class Pace:
    """Pace of one client's stream: bytes over the time in which the client was waited for."""

    def __init__(self, stall_s: float) -> None:
        self._allowed_s = stall_s
        self._waited_s = 0.0

    async def next(self, reading: Awaitable[object]) -> object:
        """The next message; raises StreamStalledError for one that comes too late, after all that came before."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        data = await reading
        self._waited_s += loop.time() - began_s
        if isinstance(data, bytes):
            self._allowed_s += len(data) / LEAST_BYTES_PER_S
            if self._waited_s > self._allowed_s:
                raise StreamStalledError(
                    f"this stream brings less than {LEAST_BYTES_PER_S:,} bytes a second; what arrived before is kept, "
                    "go on from there"
                )
        return data
