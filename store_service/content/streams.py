"""Streams of published blobs: bounded memory, all file work on threads, digests computed on the way."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator
from typing import BinaryIO, Generic, Protocol, TypeVar

from hotslot.errors import (
    BadOffsetError,
    DigestMismatchError,
)
from hotslot.ids import Digest
from store_service.execution.offload import Offload

CHUNK_BYTES = 1024 * 1024
"""Of a stream; it holds two at most. Smaller ones cost visits to threads and turns of the loop, larger ones memory."""
FIRST_CHUNK_BYTES = 256 * 1024
"""Of a stream, as long as nothing is known of its reader."""
SLOW_CHUNK_BYTES = 64 * 1024
"""Of a stream whose reader is slow: whether it takes anything is then seen within seconds."""
FAST_S, SLOW_S = 0.25, 1.0
"""A chunk that is taken within the first lets the next one be larger, one that takes longer than the second smaller."""
GROWTH = 4
MAX_VERIFIED = 100_000


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Encode(Protocol[T_co]):
    """Makes of a blob's piece what its receiver gets; called on the thread that read it."""

    def __call__(self, data: bytes, offset: int, size_bytes: int) -> T_co:
        """`offset` is the piece's in the blob, `size_bytes` the whole blob's."""


class Pace:
    """How large the chunks of one stream are: not large at first, then as its reader takes them."""

    def __init__(self) -> None:
        self.chunk_bytes = FIRST_CHUNK_BYTES
        """Of the next one."""

    def add(self, taken_s: float) -> None:
        """A chunk was taken within so long."""
        if taken_s > SLOW_S:
            self.chunk_bytes = SLOW_CHUNK_BYTES
        elif taken_s <= FAST_S:
            self.chunk_bytes = min(GROWTH * self.chunk_bytes, CHUNK_BYTES)


class Verified:
    """Remembers which files were found whole lately, so that a blob that many pull is not digested for each.

    The receiver digests what it gets in any case. A file that was written to since is another file.
    """

    def __init__(self, valid_s: float) -> None:
        self._valid_s = valid_s
        self._seen: dict[tuple[int, ...], float] = {}

    def is_fresh(self, file: BinaryIO) -> bool:
        """Whether this file was found whole within `valid_s`."""
        seen_s = self._seen.get(_identity(file))
        return seen_s is not None and time.monotonic() - seen_s < self._valid_s

    def add(self, file: BinaryIO) -> None:
        """This file was found whole."""
        if len(self._seen) >= MAX_VERIFIED:
            self._seen.clear()
        self._seen[_identity(file)] = time.monotonic()


def _identity(file: BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class RottenBlobError(DigestMismatchError):
    """A blob's file is not what its digest says."""

    def __init__(self, what: str, found: str, expected: Digest, sent_bytes: int, sent_hash: bytes) -> None:
        super().__init__(what, found, expected)
        self.sent_bytes = sent_bytes
        """How far the file was read before the bytes that were held back."""
        self.sent_hash = sent_hash
        """SHA-256 of the file up to there."""


class _Reader(Generic[T]):
    """Reads a range of an open blob chunk by chunk, on threads; verifies when the range reaches the end."""

    def __init__(
        self,
        file: BinaryIO,
        size_bytes: int,
        digest: Digest,
        offset: int,
        end: int,
        verified: Verified,
        encode: Encode[T],
    ) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._encode = encode
        self._digest = digest
        self._position = offset
        self._end = end
        self._verified = verified
        self._verifies = end == size_bytes and not verified.is_fresh(file)
        self._hash = hashlib.sha256()

    def read_prefix(self) -> None:
        """Digest what comes before the range, so that a resumed stream can be verified as well."""
        self._file.seek(0)
        if not self._verifies:
            self._file.seek(self._position)
            return
        remaining = self._position
        while remaining:
            block = self._file.read(min(CHUNK_BYTES, remaining))
            if not block:
                raise DigestMismatchError(f"blob {self._digest}", "a file that is too short", self._digest)
            self._hash.update(block)
            remaining -= len(block)

    def read_chunk(self, most_bytes: int) -> T | None:
        """The next chunk, of so many bytes at most; None at the end.

        Raises DigestMismatchError before the last one is given away.
        """
        begin = self._position
        if begin == self._end:
            return None
        chunk = self._file.read(min(most_bytes, self._end - begin))
        if not chunk:
            raise DigestMismatchError(f"blob {self._digest}", "a file that is too short", self._digest)
        self._position += len(chunk)
        if self._verifies:
            sent_hash = self._hash.copy()
            self._hash.update(chunk)
            if self._position == self._end:
                found = Digest("sha256:" + self._hash.hexdigest())
                if found != self._digest:
                    what = f"blob {self._digest} on the store's disk"
                    raise RottenBlobError(what, found, self._digest, begin, sent_hash.digest())
                self._verified.add(self._file)
        return self._encode(chunk, begin, self._size_bytes)


async def read_stream(
    file: BinaryIO,
    size_bytes: int,
    digest: Digest,
    offset: int,
    limit: int,
    offload: Offload,
    verified: Verified,
    encode: Encode[T],
) -> AsyncGenerator[T]:
    """The bytes `[offset, offset + limit)` (limit 0: to the end), one chunk ahead of the receiver; closes the file.

    Raises BadOffsetError, and DigestMismatchError instead of the last chunk when the bytes have rotted.
    """
    pending: asyncio.Future[T | None] | None = None
    try:
        if offset > size_bytes:
            raise BadOffsetError(f"blob {digest}", offset, size_bytes)
        end = min(size_bytes, offset + limit) if limit else size_bytes
        reader = _Reader(file, size_bytes, digest, offset, end, verified, encode)
        await offload(reader.read_prefix)
        pace = Pace()
        pending = offload.start(reader.read_chunk, pace.chunk_bytes)
        while (chunk := await pending) is not None:
            pending = offload.start(reader.read_chunk, pace.chunk_bytes)
            given_s = time.monotonic()
            yield chunk
            pace.add(time.monotonic() - given_s)
    finally:
        if pending is None or pending.done():
            file.close()
        else:
            pending.add_done_callback(lambda _: file.close())
