"""Moving blobs to and from the store: resumed where a broken stream ended, verified by digest."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from hotslot.backoff import Backoff
from hotslot.clients.checkpoint import CheckpointFile
from hotslot.clients.rpc import Connection
from hotslot.codec import build
from hotslot.content_files import StagedFile
from hotslot.digesting import StreamDigest
from hotslot.errors import (
    BadOffsetError,
    DigestMismatchError,
    HotslotError,
    InternalError,
    InvalidRequestError,
    QuotaExceededError,
    RequestDeadlineError,
    UnavailableError,
    UploadBusyError,
)
from hotslot.ids import Digest
from hotslot.pb.hotslot.store.v1 import blob_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2_grpc as pb_grpc
from hotslot.rpc.blob_chunks import read_blob_of
from hotslot.rpc.sending import REFUSAL_S, send_all

CHUNK_BYTES = 1024 * 1024
"""Bytes of one chunk of an upload; at most these are sent twice where a stream breaks."""
MAX_DIGESTS_PER_CALL = 1000
# A server that goes away ends streams with any of these; what is wrong for good is none of them.
BROKEN_STREAM = (UnavailableError, RequestDeadlineError)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries of a transfer that makes no progress."""

    max_stalls: int = 6
    """Attempts in a row without a single new byte."""
    first_delay_s: float = 0.1
    max_delay_s: float = 5.0
    stream_timeout_s: float = 300.0
    """Deadline of one stream; a transfer that needs longer goes on with the next."""

    def delay_s(self, stalls: int) -> float:
        """Pause after `stalls` attempts without progress, with jitter."""
        return Backoff(self.first_delay_s, self.max_delay_s).pause_s(stalls)


class BlobTransfer:
    """Uploads files and reads blobs."""

    def __init__(self, connection: Connection, retry: RetryPolicy) -> None:
        self._connection = connection
        self._stub = pb_grpc.BlobServiceStub(connection.channel)
        self._read_blob = read_blob_of(connection.channel)
        self._retry = retry

    async def missing(self, digests: Sequence[Digest]) -> set[Digest]:
        """Digests among these that the store does not have yet."""
        found: set[Digest] = set()
        for start in range(0, len(digests), MAX_DIGESTS_PER_CALL):
            request = pb.FindMissingBlobsRequest(digests=digests[start : start + MAX_DIGESTS_PER_CALL])
            response = await self._connection.unary(self._stub.FindMissingBlobs, request)
            found.update(Digest(digest) for digest in response.missing_digests)
        return found

    async def upload(
        self, file: CheckpointFile, digest: Digest, on_position: Callable[[int], None] | None = None
    ) -> None:
        """Send a file until the store has committed it; `on_position` hears how far it is.

        Raises DigestMismatchError when the file is not (any more) what its digest says, and what the store or the
        network failed with when several attempts in a row got nowhere.
        """
        most, stalls = -1, 0
        is_resumed = False
        while True:
            try:
                status = await self._connection.unary(
                    self._stub.GetWriteStatus, pb.GetWriteStatusRequest(digest=digest)
                )
                # Another store than before may have less of it, and goes on from there.
                committed = status.committed_size
                if committed > most:
                    most, stalls = committed, 0
                if status.complete or await self._write(file, digest, committed, on_position, is_resumed=is_resumed):
                    return
                raise InternalError(f"the store took all of {file.path} and did not complete {digest}")
            except (*BROKEN_STREAM, BadOffsetError, UploadBusyError, QuotaExceededError) as exc:
                is_resumed = True
                stalls += 1
                if stalls > self._retry.max_stalls or _is_final(exc):
                    raise
                await asyncio.sleep(self._retry.delay_s(stalls))

    async def _write(
        self,
        file: CheckpointFile,
        digest: Digest,
        offset: int,
        on_position: Callable[[int], None] | None,
        *,
        is_resumed: bool,
    ) -> bool:
        """One stream. A resumed one begins with a message without bytes, and gives the server time to refuse it."""
        call = self._stub.WriteBlob(timeout=self._retry.stream_timeout_s)

        async def messages() -> AsyncGenerator[pb.WriteBlobRequest, None]:
            if is_resumed:
                yield pb.WriteBlobRequest(digest=digest, size_bytes=file.size_bytes, offset=offset)
                await asyncio.wait([asyncio.ensure_future(call.code())], timeout=REFUSAL_S)
            async with aclosing(_requests(file, digest, offset)) as requests:
                async for request in requests:
                    yield request
                    if on_position is not None:
                        on_position(request.offset + len(request.data))

        try:
            return (await send_all(call, messages())).complete
        except grpc.aio.AioRpcError as exc:
            raise self._connection.error_from(exc) from exc

    async def read(self, digest: Digest) -> AsyncGenerator[memoryview, None]:
        """Stream a blob, as views of what arrived.

        Use nothing of it before the iterator has ended: only then is the digest known to be right.

        Raises DigestMismatchError after the last chunk when the bytes are not those of the digest.
        """
        digesting = StreamDigest()
        position, size_bytes, stalls = 0, -1, 0
        while position != size_bytes:
            request = build(pb.ReadBlobRequest, digest=digest, offset=position)
            timeout_s = self._retry.stream_timeout_s
            try:
                async with aclosing(self._connection.stream(self._read_blob, request, timeout_s)) as stream:
                    async for chunk in stream:
                        if chunk.offset != position:
                            raise BadOffsetError(f"blob {digest}", chunk.offset, position)
                        size_bytes = chunk.size_bytes
                        await digesting.add(chunk.data)
                        position, stalls = position + len(chunk.data), 0
                        yield chunk.data
            except (*BROKEN_STREAM, QuotaExceededError) as exc:
                stalls += 1
                if stalls > self._retry.max_stalls or _is_final(exc):
                    raise
                await asyncio.sleep(self._retry.delay_s(stalls))
            else:
                if position != size_bytes:
                    raise InternalError(
                        f"blob {digest}: the stream ended at {position} of {size_bytes} bytes; read it again"
                    )
        found = await digesting.digest()
        if found != digest:
            raise DigestMismatchError(f"blob {digest}", found, digest)

    async def download(self, digest: Digest, path: Path) -> int:
        """Write a blob to a file, which appears only once it is complete and verified; returns its size."""
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        staged = StagedFile(part, digests=False)  # `read` digests what it gives
        try:
            async with aclosing(self.read(digest)) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(staged.write, chunk)
            staged.publish(path, is_durable=False)
        finally:
            staged.discard()
        return staged.size_bytes


def _is_final(error: HotslotError) -> bool:
    """Tell whether an error is a bound that stays as it is: the server does not say when to come again."""
    return isinstance(error, QuotaExceededError) and error.retry_after_s is None


async def _requests(file: CheckpointFile, digest: Digest, offset: int) -> AsyncGenerator[pb.WriteBlobRequest, None]:
    """The messages of one upload stream, from `offset` on; the first names the blob, the last finishes it."""
    with file.local.open("rb") as stream:
        stream.seek(offset)
        position, finish = offset, False
        while not finish:
            data = await asyncio.to_thread(stream.read, CHUNK_BYTES)
            finish = position + len(data) >= file.size_bytes
            if not data and not finish:
                raise InvalidRequestError([], f"{file.local} became shorter while it was pushed; push it again")
            yield pb.WriteBlobRequest(
                digest=digest, size_bytes=file.size_bytes, offset=position, data=data, finish=finish
            )
            position += len(data)
