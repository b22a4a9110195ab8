"""BlobService: bytes in and out."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.ids import Digest, parse_digest
from hotslot.pb.hotslot.store.v1 import blob_pb2, blob_pb2_grpc
from hotslot.rpc.blob_chunks import encode_chunk
from hotslot.rpc.tenant import tenant_of
from shared.call_notes import call_notes
from shared.metrics.numbers import Measured, Tally
from store_service.content.reading import ContentReader
from store_service.content.receiving import UploadChunk, Uploads
from store_service.content.uploads import UploadFolder
from store_service.execution.offload import Offload
from store_service.execution.turns import Turns


class BlobServicer(blob_pb2_grpc.BlobServiceServicer):
    """Streams published blobs out and uploads in; served by `hotslot.rpc.blob_chunks.add_to_server`."""

    def __init__(self, uploads: UploadFolder, reader: ContentReader, offload: Offload, turns: Turns) -> None:
        """`turns` are those of all streams that the store sends."""
        self._uploads = Uploads(uploads, offload)
        self._reader = reader
        self._turns = turns
        self._received = Tally("hotslot_content_bytes_total", [("in",)])

    def readings(self) -> Iterator[Measured]:
        """Numbers of the bytes that went by."""
        yield from self._received.readings()
        yield from self._reader.sent.readings()

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Any) -> AsyncIterator[Any]:
        """See the service's definition; the messages are encoded already."""
        digest = parse_digest(request.digest)
        call_notes().digests = (digest,)
        _check_range(request.offset, request.limit)
        tenant, offset, limit = tenant_of(context), request.offset, request.limit
        messages = self._reader.read(tenant, digest, offset, limit, encode_chunk, announced=request.announced)
        async with aclosing(messages):
            async for message in messages:
                await self._turns.take()
                yield message

    async def WriteBlob(
        self, request_iterator: AsyncIterator[blob_pb2.WriteBlobRequest], context: Any
    ) -> blob_pb2.WriteBlobResponse:
        """See the service's definition."""
        chunks = _chunks_of(request_iterator, self._received)
        result = await self._uploads.receive(tenant_of(context), chunks)
        return blob_pb2.WriteBlobResponse(
            digest=result.digest, committed_size=result.committed_size, complete=result.is_complete
        )

    async def GetWriteStatus(
        self, request: blob_pb2.GetWriteStatusRequest, context: Any
    ) -> blob_pb2.GetWriteStatusResponse:
        """See the service's definition."""
        digest = parse_digest(request.digest)
        committed_size, complete = await self._uploads.status(tenant_of(context), digest)
        return blob_pb2.GetWriteStatusResponse(committed_size=committed_size, complete=complete)

    async def FindMissingBlobs(
        self, request: blob_pb2.FindMissingBlobsRequest, context: Any
    ) -> blob_pb2.FindMissingBlobsResponse:
        """See the service's definition."""
        digests = [parse_digest(text, field=f"digests[{i}]") for i, text in enumerate(request.digests)]
        missing = await self._uploads.missing(tenant_of(context), digests)
        return blob_pb2.FindMissingBlobsResponse(missing_digests=missing)


async def _chunks_of(messages: AsyncIterator[blob_pb2.WriteBlobRequest], received: Tally) -> AsyncIterator[UploadChunk]:
    digest: Digest | None = None
    async for message in messages:
        digest = digest or parse_digest(message.digest)
        received.add("in", by=len(message.data))
        yield UploadChunk(digest, message.size_bytes, message.offset, message.data, message.finish)


def _check_range(offset: int, limit: int) -> None:
    problems = [
        FieldViolation(name, f"found {value}, expected 0 or more")
        for name, value in (("offset", offset), ("limit", limit))
        if value < 0
    ]
    if problems:
        raise InvalidRequestError(problems)
