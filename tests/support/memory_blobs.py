"""BlobService of the store in memory: streams break and hang where a test asks for it."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from hotslot.errors import (
    BadOffsetError,
    BlobNotFoundError,
    DigestMismatchError,
    QuotaExceededError,
    StoreUnavailableError,
)
from hotslot.ids import TenantId, digest_of
from hotslot.pb.hotslot.store.v1 import blob_pb2, blob_pb2_grpc
from hotslot.rpc.tenant import tenant_of

CHUNK_BYTES = 1_024


@dataclass
class Published:
    """Content that a version refers to; a test may take some of its bytes, or change them."""

    data: bytes
    size_bytes: int


class MemoryBlobs(blob_pb2_grpc.BlobServiceServicer):
    """Uploads and published content by tenant and digest."""

    def __init__(self) -> None:
        self.uploads: defaultdict[TenantId, dict[str, bytes]] = defaultdict(dict)
        self.staged: dict[tuple[TenantId, str], bytearray] = {}
        self.published: defaultdict[TenantId, dict[str, Published]] = defaultdict(dict)
        self.break_writes_after: deque[int] = deque()
        """Bytes after which the next uploads break."""
        self.break_reads_after: deque[int] = deque()
        """Bytes after which the next downloads break."""
        self.quota_bytes: int | None = None
        self.reading = asyncio.Event()
        """While cleared, downloads hang before their first byte."""
        self.reading.set()
        self.write_offsets: list[int] = []
        self.read_offsets: list[int] = []
        self.active_reads = 0

    def publish(self, tenant: TenantId, data: bytes, *, truncated: bool = False) -> None:
        """Have a version refer to content; what is truncated has lost its end."""
        kept = data[: len(data) // 2] if truncated else data
        self.published[tenant][digest_of(data)] = Published(kept, len(data))

    async def FindMissingBlobs(self, request: blob_pb2.FindMissingBlobsRequest, context: Any) -> Any:
        uploads = self.uploads[tenant_of(context)]
        return blob_pb2.FindMissingBlobsResponse(missing_digests=[d for d in request.digests if d not in uploads])

    async def GetWriteStatus(self, request: blob_pb2.GetWriteStatusRequest, context: Any) -> Any:
        tenant = tenant_of(context)
        whole = self.uploads[tenant].get(request.digest)
        if whole is not None:
            return blob_pb2.GetWriteStatusResponse(committed_size=len(whole), complete=True)
        return blob_pb2.GetWriteStatusResponse(committed_size=len(self.staged.get((tenant, request.digest), b"")))

    async def WriteBlob(self, requests: AsyncIterator[blob_pb2.WriteBlobRequest], context: Any) -> Any:
        tenant = tenant_of(context)
        limit = self.break_writes_after.popleft() if self.break_writes_after else None
        digest, num_received, staged = "", 0, bytearray()
        async for request in requests:
            if not digest:
                self.write_offsets.append(request.offset)
                digest = request.digest
                staged = self.staged.setdefault((tenant, digest), bytearray())
            if request.offset != len(staged):
                raise BadOffsetError(f"upload {digest}", request.offset, len(staged))
            if limit is not None and num_received + len(request.data) > limit:
                raise StoreUnavailableError("the stream broke")
            if self.quota_bytes is not None and len(staged) + len(request.data) > self.quota_bytes:
                raise QuotaExceededError("the quota is used up", subject="tenant")
            staged.extend(request.data)
            num_received += len(request.data)
            if request.finish:
                return self._finish(tenant, digest, bytes(self.staged.pop((tenant, digest))))
        return blob_pb2.WriteBlobResponse(digest=digest, committed_size=len(staged))

    def _finish(self, tenant: TenantId, digest: str, data: bytes) -> blob_pb2.WriteBlobResponse:
        found = digest_of(data)
        if found != digest:
            raise DigestMismatchError(f"upload {digest} of {len(data)} bytes", found, digest)
        self.uploads[tenant][digest] = data
        return blob_pb2.WriteBlobResponse(digest=digest, committed_size=len(data), complete=True)

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Any) -> AsyncIterator[Any]:
        self.active_reads += 1
        try:
            await self.reading.wait()
            blob = self.published[tenant_of(context)].get(request.digest)
            if blob is None:
                raise BlobNotFoundError(request.digest)
            if request.offset > len(blob.data):
                raise BadOffsetError(f"blob {request.digest}", request.offset, len(blob.data))
            self.read_offsets.append(request.offset)
            limit = self.break_reads_after.popleft() if self.break_reads_after else None
            for offset in range(request.offset, len(blob.data), CHUNK_BYTES):
                if limit is not None and offset - request.offset >= limit:
                    raise StoreUnavailableError("the stream broke")
                data = blob.data[offset : offset + CHUNK_BYTES]
                yield blob_pb2.ReadBlobResponse(data=data, offset=offset, size_bytes=blob.size_bytes)
        finally:
            self.active_reads -= 1
