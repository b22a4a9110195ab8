"""Streams of uploads: what arrives is written message by message, and what was written is never asked for again."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass

from hotslot.errors import (
    BadOffsetError,
    FieldViolation,
    InvalidRequestError,
)
from hotslot.ids import Digest, TenantId
from store_service.content.keys import BlobKey
from store_service.content.uploads import UploadFolder
from store_service.content.writer import Writer
from store_service.execution.offload import Offload


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
    """Progress of an upload."""

    digest: Digest
    committed_size: int
    is_complete: bool


class Uploads:
    """Takes uploads. Lives on the event loop; all file work is done on threads."""

    def __init__(self, uploads: UploadFolder, offload: Offload) -> None:
        self._uploads = uploads
        self._offload = offload
        self._ending: dict[BlobKey, asyncio.Future[None]] = {}
        """Streams that are over and still write down what had arrived."""

    async def receive(self, tenant: TenantId, chunks: AsyncIterator[UploadChunk]) -> UploadResult:
        """Take one stream's bytes; what arrived is kept when the stream breaks.

        Raises InvalidRequestError, BadOffsetError, UploadBusyError, QuotaExceededError and DigestMismatchError.
        """
        first = await anext(chunks, None)
        if first is None:
            raise InvalidRequestError([FieldViolation("digest", "the stream has no message")])
        if first.size_bytes <= 0:
            raise InvalidRequestError([FieldViolation("size_bytes", f"found {first.size_bytes}, expected more than 0")])
        upload = await self._begin(tenant, first)
        if upload is None:
            committed_size, _ = await self._offload(self._uploads.status, tenant, first.digest)
            return UploadResult(first.digest, committed_size, True)
        writer = _StreamWriter(upload, self._offload)
        try:
            return await self._take(first, chunks, writer, upload.size_bytes)
        finally:
            await asyncio.shield(self._end((tenant, first.digest), writer.settle()))

    async def status(self, tenant: TenantId, digest: Digest) -> tuple[int, bool]:
        """Bytes received and whether complete; (0, False) for an unknown upload."""
        await self._ended((tenant, digest))
        return await self._offload(self._uploads.status, tenant, digest)

    async def missing(self, tenant: TenantId, digests: list[Digest]) -> list[Digest]:
        """The digests that the tenant would have to upload."""
        return await self._offload(lambda: [digest for digest in digests if not self._is_complete(tenant, digest)])

    async def _take(
        self, first: UploadChunk, chunks: AsyncIterator[UploadChunk], writer: "_StreamWriter", received: int
    ) -> UploadResult:
        chunk: UploadChunk | None = first
        while chunk is not None:
            if chunk.offset != received:
                raise BadOffsetError(f"upload {first.digest}", chunk.offset, received)
            received += len(chunk.data)
            if received > first.size_bytes:
                problem = f"{received} bytes came, size_bytes said {first.size_bytes}"
                raise InvalidRequestError([FieldViolation("data", problem)])
            await writer.write(chunk.data)
            if chunk.finish:
                if received != first.size_bytes:
                    raise BadOffsetError(f"end of upload {first.digest}", received, first.size_bytes)
                await writer.publish(first.digest, received)
                return UploadResult(first.digest, received, True)
            chunk = await anext(chunks, None)
        await writer.share()
        return UploadResult(first.digest, received, False)

    async def _begin(self, tenant: TenantId, first: UploadChunk) -> Writer | None:
        """Take the upload; a caller that is cancelled meanwhile does not keep it."""
        key = tenant, first.digest
        await self._ended(key)
        beginning = self._offload.start(self._uploads.begin, tenant, first.digest, first.size_bytes)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            self._end(key, self._let_go(beginning))
            raise

    async def _let_go(self, beginning: "asyncio.Future[Writer | None]") -> None:
        """Let go of an upload that was only begun, once that is done."""
        await asyncio.wait([beginning])
        if beginning.exception() is None and (writer := beginning.result()) is not None:
            await self._offload(writer.close)

    def _end(self, key: BlobKey, letting_go: Coroutine[None, None, None]) -> asyncio.Future[None]:
        """Let go of an upload; a stream that goes on with it waits for that, and is not refused."""
        ending = self._ending[key] = asyncio.ensure_future(letting_go)
        ending.add_done_callback(lambda _: self._forget(key, ending))
        return ending

    def _forget(self, key: BlobKey, ending: asyncio.Future[None]) -> None:
        if self._ending.get(key) is ending:
            del self._ending[key]

    async def _ended(self, key: BlobKey) -> None:
        ending = self._ending.get(key)
        if ending is not None:
            await asyncio.wait([ending])

    def _is_complete(self, tenant: TenantId, digest: Digest) -> bool:
        self._uploads.touch(tenant, digest)
        return self._uploads.status(tenant, digest)[1]


class _StreamWriter:
    """Does one thing after the other with an upload, each to its end, also when the call is cancelled.

    The next message is only asked for when the last one is written: what a killed store had taken and not written must
    be sent again.
    """

    def __init__(self, upload: Writer, offload: Offload) -> None:
        self._upload = upload
        self._offload = offload
        self._doing: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """Write some bytes; raises as `Writer.write`."""
        if data:
            await self._do(self._offload.start(self._upload.write, data))

    async def publish(self, digest: Digest, size_bytes: int) -> None:
        """Verify and keep what was written; raises as `Writer.publish`."""
        await self._do(self._offload.start(self._upload.publish, digest, size_bytes))

    async def share(self) -> None:
        """See that another store can go on from here; raises as `Writer.share`."""
        await self._do(self._offload.start(self._upload.share))

    async def settle(self) -> None:
        """Let go of the upload once nothing is being done with it any more, whatever happened."""
        if self._doing is not None:
            await asyncio.wait([self._doing])
            self._doing.exception()  # its waiter has raised it
        await self._offload(self._upload.close)

    async def _do(self, doing: "asyncio.Future[None]") -> None:
        self._doing = doing
        await asyncio.shield(doing)
