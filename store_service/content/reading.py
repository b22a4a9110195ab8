"""Streams of content: bounded memory, all file work on threads, digests computed on the way.

Rot that shows while a published blob streams is repaired, and the stream goes on with the right bytes.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import BinaryIO, Generic, Protocol, TypeVar

from hotslot.errors import BadOffsetError, DigestMismatchError
from hotslot.ids import Digest, TenantId, digest_of_hex
from shared.metrics.numbers import Tally
from store_service.content.keys import BlobKey
from store_service.content.recovery import Recovery
from store_service.content.verified import Verified
from store_service.execution.offload import Offload

CHUNK_BYTES = 1024 * 1024
"""Largest chunk of a stream, which holds two at most. Smaller ones cost turns of threads and loop, larger memory."""
FIRST_CHUNK_BYTES = 256 * 1024
"""Chunk of a stream, as long as nothing is known of its reader."""
SLOW_CHUNK_BYTES = 64 * 1024
"""Chunk of a stream whose reader is slow: whether it takes anything is then seen within seconds."""
FAST_S, SLOW_S = 0.25, 1.0
"""A chunk that is taken within the first lets the next one be larger, one that takes longer than the second smaller."""
GROWTH = 4

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Encode(Protocol[T_co]):
    """Makes of a blob's piece what its receiver gets; called on the thread that read it."""

    def __call__(self, data: bytes, offset: int, size_bytes: int) -> T_co:
        """`offset` is the piece's in the blob, `size_bytes` the whole blob's."""


class ChunkPace:
    """Pace of one stream, and the size of its chunks: not large at first, then as its reader takes them."""

    def __init__(self) -> None:
        self.chunk_bytes = FIRST_CHUNK_BYTES
        """Size of the next one."""

    def add(self, taken_s: float) -> None:
        """A chunk was taken within so long."""
        if taken_s > SLOW_S:
            self.chunk_bytes = SLOW_CHUNK_BYTES
        elif taken_s <= FAST_S:
            self.chunk_bytes = min(GROWTH * self.chunk_bytes, CHUNK_BYTES)


class RottenBlobError(DigestMismatchError):
    """A blob's file is not what its digest says."""

    def __init__(self, what: str, found: str, expected: Digest, sent_bytes: int, sent_hash: bytes) -> None:
        super().__init__(what, found, expected)
        self.sent_bytes = sent_bytes
        """Position in the file before the bytes that were held back."""
        self.sent_hash = sent_hash
        """SHA-256 of the file up to there."""


class _Range(Generic[T]):
    """Reads a range of an open file chunk by chunk, on threads; verifies a blob when the range reaches its end."""

    def __init__(
        self, file: BinaryIO, size_bytes: int, digest: Digest, offset: int, end: int, verified: Verified | None
    ) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._digest = digest
        self._position = offset
        self._end = end
        self._verified = verified if end == size_bytes and verified and not verified.is_fresh(file) else None
        self._hash = hashlib.sha256()

    def read_prefix(self) -> None:
        """Digest what comes before the range, so that a resumed stream can be verified as well."""
        self._file.seek(0)
        if self._verified is None:
            self._file.seek(self._position)
        elif not _hash_prefix(self._file, self._position, self._hash):
            raise self._too_short()

    def read_chunk(self, most_bytes: int, encode: Encode[T]) -> T | None:
        """The next chunk, of so many bytes at most; None at the end.

        Raises DigestMismatchError before the last one is given away.
        """
        begin = self._position
        if begin == self._end:
            return None
        chunk = self._file.read(min(most_bytes, self._end - begin))
        if not chunk:
            raise self._too_short()
        self._position += len(chunk)
        if self._verified is not None:
            sent_hash = self._hash.copy()
            self._hash.update(chunk)
            if self._position == self._end:
                found = digest_of_hex(self._hash.hexdigest())
                if found != self._digest:
                    what = f"blob {self._digest} on the store's disk"
                    raise RottenBlobError(what, found, self._digest, begin, sent_hash.digest())
                self._verified.add(self._file)
        return encode(chunk, begin, self._size_bytes)

    def _too_short(self) -> DigestMismatchError:
        return DigestMismatchError(f"blob {self._digest}", "a file that is too short", self._digest)


async def read_stream(
    file: BinaryIO,
    size_bytes: int,
    digest: Digest,
    encode: Encode[T],
    offload: Offload,
    *,
    offset: int = 0,
    limit: int = 0,
    verified: Verified | None = None,
) -> AsyncGenerator[T]:
    """The bytes `[offset, offset + limit)` (limit 0: to the end), one chunk ahead of the receiver; closes the file.

    Raises BadOffsetError, and, with `verified`, DigestMismatchError instead of the last chunk when the bytes are not
    the digest's.
    """
    pending: asyncio.Future[T | None] | None = None
    try:
        if offset > size_bytes:
            raise BadOffsetError(f"blob {digest}", offset, size_bytes)
        end = min(size_bytes, offset + limit) if limit else size_bytes
        wanted: _Range[T] = _Range(file, size_bytes, digest, offset, end, verified)
        await offload(wanted.read_prefix)
        pace = ChunkPace()
        pending = offload.start(wanted.read_chunk, pace.chunk_bytes, encode)
        while (chunk := await pending) is not None:
            pending = offload.start(wanted.read_chunk, pace.chunk_bytes, encode)
            given_s = time.monotonic()
            yield chunk
            pace.add(time.monotonic() - given_s)
    finally:
        if pending is None or pending.done():
            file.close()
        else:
            pending.add_done_callback(lambda _: file.close())


class ContentReader:
    """Reads published blobs for streams."""

    def __init__(self, recovery: Recovery, offload: Offload, verified: Verified) -> None:
        self._recovery = recovery
        self._offload = offload
        self._verified = verified
        self.sent = Tally("hotslot_content_bytes_total", [("out",)])

    async def read(
        self, tenant: TenantId, digest: Digest, offset: int, limit: int, encode: Encode[T], *, announced: bool = False
    ) -> AsyncGenerator[T]:
        """The bytes `[offset, offset + limit)` (limit 0: to the end), chunk by chunk, as `encode` makes them.

        Of an `announced` blob they are there while it is published, too.

        Raises as `Recovery.open`, BadOffsetError, and DigestMismatchError when bytes that were given out already
        were not the right ones: by then the blob is repaired, and reading it again gives the right ones.
        """
        key: BlobKey = (tenant, digest)
        try:
            file, size_bytes, key = await self._recovery.open(tenant, digest, announced=announced)
            async with aclosing(self._stream(file, size_bytes, digest, offset, limit, encode)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except RottenBlobError as exc:
            rotten = exc
        await self._recovery.make_whole(key)
        file, size_bytes, _ = await self._recovery.open(tenant, digest)
        if not await self._offload(_begins_with, file, rotten.sent_bytes, rotten.sent_hash):
            file.close()
            raise rotten
        # Only a stream that reaches the end finds rot.
        async with aclosing(self._stream(file, size_bytes, digest, rotten.sent_bytes, 0, encode)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _stream(
        self, file: BinaryIO, size_bytes: int, digest: Digest, offset: int, limit: int, encode: Encode[T]
    ) -> AsyncGenerator[T]:
        def counted(data: bytes, offset: int, size_bytes: int) -> T:
            self.sent.add("out", by=len(data))
            return encode(data, offset, size_bytes)

        return read_stream(
            file, size_bytes, digest, counted, self._offload, offset=offset, limit=limit, verified=self._verified
        )


def _begins_with(file: BinaryIO, num_bytes: int, expected: bytes) -> bool:
    found = hashlib.sha256()
    file.seek(0)
    return _hash_prefix(file, num_bytes, found) and found.digest() == expected


def _hash_prefix(file: BinaryIO, num_bytes: int, into: "hashlib._Hash") -> bool:
    """Digest so many bytes of a file from where it is; false where it ends before."""
    while num_bytes:
        block = file.read(min(CHUNK_BYTES, num_bytes))
        if not block:
            return False
        into.update(block)
        num_bytes -= len(block)
    return True
