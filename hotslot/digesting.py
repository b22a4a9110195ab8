"""The SHA-256 of a stream, computed on a thread while the next pieces arrive."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence

from hotslot.ids import Digest

BLOCK_BYTES = 2 * 2**20
"""Digested on one visit to a thread: visits cost, and pieces of a stream are small."""


class StreamDigest:
    """Digests pieces in order; holds on to two blocks of them at most."""

    def __init__(self, also: Callable[[bytes | memoryview], None] | None = None) -> None:
        """`also` is called with each piece, in order, on the thread; `digest` waits for it, too."""
        self._also = also
        self._hash = hashlib.sha256()
        self._gathered: list[bytes | memoryview] = []
        self._gathered_bytes = 0
        self._running: asyncio.Future[None] | None = None

    async def add(self, data: bytes | memoryview) -> None:
        """Take the next piece, which must not change any more."""
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= BLOCK_BYTES:
            await self._flush()

    async def digest(self) -> Digest:
        """The digest of everything added."""
        await self._flush()
        await self._settle()
        return Digest("sha256:" + self._hash.hexdigest())

    async def _flush(self) -> None:
        await self._settle()
        pieces, self._gathered, self._gathered_bytes = self._gathered, [], 0
        self._running = asyncio.get_running_loop().run_in_executor(None, self._update, pieces)

    async def _settle(self) -> None:
        if self._running is not None:
            await self._running

    def _update(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            self._hash.update(piece)
            if self._also is not None:
                self._also(piece)
