"""Streams published blobs; rot that shows while streaming is repaired, and the stream goes on with the right bytes."""

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import BinaryIO, TypeVar

from hotslot.ids import Digest, TenantId
from store_service.content.files import DIGEST_BLOCK_BYTES
from store_service.content.recovery import Recovery
from store_service.content.streams import Encode, RottenBlobError, Verified, read_stream
from store_service.execution.offload import Offload

T = TypeVar("T")


class BlobReader:
    """Reads blobs for streams."""

    def __init__(self, recovery: Recovery, offload: Offload, verify_every_s: float) -> None:
        self._recovery = recovery
        self._offload = offload
        self._verified = Verified(verify_every_s)

    async def read(
        self, tenant: TenantId, digest: Digest, offset: int, limit: int, encode: Encode[T]
    ) -> AsyncGenerator[T]:
        """The bytes `[offset, offset + limit)` (limit 0: to the end), chunk by chunk, as `encode` makes them.

        Raises as `Recovery.open`, BadOffsetError, and DigestMismatchError when bytes that were given out already
        were not the right ones: by then the blob is repaired, and reading it again gives the right ones.
        """
        try:
            file, size_bytes = await self._recovery.open(tenant, digest)
            async with aclosing(self._stream(file, size_bytes, digest, offset, limit, encode)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except RottenBlobError as exc:
            rotten = exc
        await self._recovery.make_whole((tenant, digest))
        file, size_bytes = await self._recovery.open(tenant, digest)
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
        return read_stream(file, size_bytes, digest, offset, limit, self._offload, self._verified, encode)


def _begins_with(file: BinaryIO, num_bytes: int, expected: bytes) -> bool:
    digest = hashlib.sha256()
    file.seek(0)
    while num_bytes and (block := file.read(min(num_bytes, DIGEST_BLOCK_BYTES))):
        digest.update(block)
        num_bytes -= len(block)
    return digest.digest() == expected
