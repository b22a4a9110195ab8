"""Bytes between blobs and streams: bounded memory, all file work on threads, digests computed on the way."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import BinaryIO

from shared.errors import (
    BadOffsetError,
    BlobNotFoundError,
    DigestMismatchError,
    FieldViolation,
    InvalidRequestError,
    QuotaExceededError,
)
from shared.ids import Digest, TenantId
from store_service.blobs.store import Upload, UploadStore
from store_service.offload import Offload

CHUNK_BYTES = 512 * 1024
BLOCK_CHUNKS = 2
"""Chunks read on one visit to a thread; a stream holds two such blocks at most."""
MAX_VERIFIED = 100_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a blob."""

    data: bytes
    offset: int
    size_bytes: int
    """Of the whole blob."""


@dataclass(frozen=True, slots=True)
class UploadChunk:
    """One message of an upload; digest and size count on the first only."""

    digest: Digest
    size_bytes: int
    offset: int
    data: bytes
    finish: bool


@dataclass(frozen=True, slots=True)
class UploadResult:
    """How far an upload is."""

    digest: Digest
    committed_size: int
    is_complete: bool


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


class _Reader:
    """Reads a range of an open blob block by block, on threads; verifies when the range reaches the end."""

    def __init__(
        self, file: BinaryIO, size_bytes: int, digest: Digest, offset: int, end: int, verified: Verified
    ) -> None:
        self._file = file
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
            block = self._file.read(min(CHUNK_BYTES * BLOCK_CHUNKS, remaining))
            if not block:
                raise DigestMismatchError(f"blob {self._digest}", "a file that is too short", self._digest)
            self._hash.update(block)
            remaining -= len(block)

    def read_block(self) -> list[bytes]:
        """The next chunks; none at the end. Raises DigestMismatchError before the last ones are given away."""
        sent_bytes, sent_hash = self._position, self._hash.copy()
        chunks: list[bytes] = []
        while self._position < self._end and len(chunks) < BLOCK_CHUNKS:
            chunk = self._file.read(min(CHUNK_BYTES, self._end - self._position))
            if not chunk:
                raise DigestMismatchError(f"blob {self._digest}", "a file that is too short", self._digest)
            if self._verifies:
                self._hash.update(chunk)
            chunks.append(chunk)
            self._position += len(chunk)
        if chunks and self._verifies and self._position == self._end:
            found = Digest("sha256:" + self._hash.hexdigest())
            if found != self._digest:
                what = f"blob {self._digest} on the store's disk"
                raise RottenBlobError(what, found, self._digest, sent_bytes, sent_hash.digest())
            self._verified.add(self._file)
        return chunks


async def read_stream(
    file: BinaryIO,
    size_bytes: int,
    digest: Digest,
    offset: int,
    limit: int,
    offload: Offload,
    verified: Verified,
) -> AsyncGenerator[Chunk]:
    """The bytes `[offset, offset + limit)` (limit 0: to the end), one block ahead of the receiver; closes the file.

    Raises BadOffsetError, and DigestMismatchError instead of the last block when the bytes have rotted.
    """
    pending: asyncio.Future[list[bytes]] | None = None
    try:
        if offset > size_bytes:
            raise BadOffsetError(f"blob {digest}", offset, size_bytes)
        end = min(size_bytes, offset + limit) if limit else size_bytes
        reader = _Reader(file, size_bytes, digest, offset, end, verified)
        await offload(reader.read_prefix)
        pending = offload.start(reader.read_block)
        while chunks := await pending:
            pending = offload.start(reader.read_block)
            for data in chunks:
                yield Chunk(data, offset, size_bytes)
                offset += len(data)
    finally:
        if pending is None or pending.done():
            file.close()
        else:
            pending.add_done_callback(lambda _: file.close())


class ReadSlots:
    """Bounds how many streams are read at once, and with that their memory."""

    def __init__(self, max_streams: int) -> None:
        self._free = max_streams
        self._max_streams = max_streams

    def __enter__(self) -> None:
        if not self._free:
            message = f"{self._max_streams} blobs are being read already; try again shortly"
            raise QuotaExceededError(message, subject="max_read_streams", retry_after_s=0.5)
        self._free -= 1

    def __exit__(self, *_: object) -> None:
        self._free += 1


async def receive_upload(
    uploads: UploadStore, tenant: TenantId, chunks: AsyncIterator[UploadChunk], offload: Offload
) -> UploadResult:
    """Take one stream's bytes; what arrived is kept when the stream breaks.

    Raises InvalidRequestError, BadOffsetError, UploadBusyError, QuotaExceededError and DigestMismatchError.
    """
    first = await anext(chunks, None)
    if first is None:
        raise InvalidRequestError([FieldViolation("digest", "the stream has no message")])
    if first.size_bytes <= 0:
        raise InvalidRequestError([FieldViolation("size_bytes", f"found {first.size_bytes}, expected more than 0")])
    upload = await _begin(uploads, tenant, first, offload)
    writer = _Writer(upload, offload)
    try:
        if upload.is_complete:
            return UploadResult(first.digest, upload.committed_size, True)
        received = upload.committed_size
        chunk: UploadChunk | None = first
        while chunk is not None:
            if chunk.offset != received:
                raise BadOffsetError(f"upload {first.digest}", chunk.offset, received)
            received += len(chunk.data)
            if received > first.size_bytes:
                problem = f"{received} bytes came, size_bytes said {first.size_bytes}"
                raise InvalidRequestError([FieldViolation("data", problem)])
            await writer.add(chunk.data)
            if chunk.finish:
                if received != first.size_bytes:
                    raise BadOffsetError(f"end of upload {first.digest}", received, first.size_bytes)
                await writer.flush()
                await offload(upload.finish)
                return UploadResult(first.digest, received, True)
            chunk = await anext(chunks, None)
        await writer.flush()
        return UploadResult(first.digest, received, False)
    finally:
        await asyncio.shield(asyncio.ensure_future(writer.settle()))


class _Writer:
    """Writes one message while the next one comes, in order, also when the call is cancelled.

    Nothing is gathered: what a killed store had taken and not written must be sent again.
    """

    def __init__(self, upload: Upload, offload: Offload) -> None:
        self._upload = upload
        self._offload = offload
        self._writing: asyncio.Future[None] | None = None

    async def add(self, data: bytes) -> None:
        """Take some bytes; raises what writing the ones before raised."""
        await self.flush()
        if data:
            self._writing = self._offload.start(self._upload.write, data)

    async def flush(self) -> None:
        """Wait until what was taken is written."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def settle(self) -> None:
        """Let go of the upload once nothing is being written any more, whatever happened."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self._offload(self._upload.close)


async def _begin(uploads: UploadStore, tenant: TenantId, first: UploadChunk, offload: Offload) -> Upload:
    """Take the upload; a caller that is cancelled meanwhile does not keep it."""
    beginning = offload.start(uploads.begin, tenant, first.digest, first.size_bytes)
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(_let_go)
        raise


def _let_go(beginning: "asyncio.Future[Upload]") -> None:
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().close()


async def find_missing(uploads: UploadStore, tenant: TenantId, digests: list[Digest], offload: Offload) -> list[Digest]:
    """The digests that the tenant would have to upload."""
    return await offload(lambda: [digest for digest in digests if not _is_complete(uploads, tenant, digest)])


def _is_complete(uploads: UploadStore, tenant: TenantId, digest: Digest) -> bool:
    try:
        uploads.path(tenant, digest)
    except BlobNotFoundError:
        return False
    return True
