"""Publishing from memory: the files go with the call, and workers that held the name before are made to serve it."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import grpc.aio

from hotslot.clients.admission import admitted
from hotslot.clients.blobs import BROKEN_STREAM, CHUNK_BYTES, RetryPolicy
from hotslot.clients.publication_fields import PUBLISH_ARGUMENTS, naming, version_request
from hotslot.clients.rpc import Connection
from hotslot.clients.trained import MemoryFile, trained_files
from hotslot.clients.worker import WorkerClient
from hotslot.clients.written_revision import WrittenRevision
from hotslot.codec import from_proto
from hotslot.contract.catalog import PublishedVersion, ReadyWorker, VersionHolder
from hotslot.digesting import StreamDigest
from hotslot.errors import HotslotError
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.pool import Closable
from hotslot.rpc.publication_messages import PublicationMessage, publish_version_of
from hotslot.rpc.sending import send_all

ONE_MESSAGE_BYTES = 4 * 2**20
"""Files of so many bytes together go in one message."""
PUBLISH_TIMEOUT_S = 300.0

Dial = Callable[[str], AbstractAsyncContextManager[WorkerClient]]


class PublishingCalls(Closable, Protocol):
    """A client of the store, as far as a publication needs it."""

    _connection: Connection
    _retry: RetryPolicy
    _written: WrittenRevision


async def publish(
    self: PublishingCalls,
    weights: object,
    config: object,
    reference: str,
    *,
    metadata: Mapping[str, str | float] | None = None,
    tags: Sequence[str] = (),
    keep: int | None = None,
    base_model: str = "",
    labels: Mapping[str, str] | None = None,
    tag_etag: str = "",
    adapter: str = "",
) -> tuple[PublishedVersion, tuple[VersionHolder, ...]]:
    """Admit an adapter from memory as `name[:tag]`; returns it, and the workers that held the name before.

    `weights` and `config` are as `HotslotClient.publish` takes them, which also has those workers serve it. Raises
    InvalidAdapterError with every violation when it is refused. A stream that breaks is sent again from its beginning:
    publishing the same content twice is publishing it once.
    """
    with naming(PUBLISH_ARGUMENTS):
        version = version_request(
            reference,
            base_model,
            labels=labels,
            tag_etag=tag_etag,
            annotations=metadata,
            tags=tags,
            keep=keep,
        )
        files = trained_files(weights, config, adapter)
        response = await _sent(self, files, version)
    sent_bytes = sum(file.size_bytes for file in files)
    published = admitted(PublishedVersion, response.published, sent_bytes=sent_bytes)
    return published, tuple(from_proto(VersionHolder, holder) for holder in response.holders)


async def _sent(
    store: PublishingCalls, files: Sequence[MemoryFile], version: pb.CreateVersionRequest
) -> pb.PublishVersionResponse:
    stalls = 0
    while True:
        known_before = store._written.value
        try:
            call = publish_version_of(store._connection.channel)(timeout=PUBLISH_TIMEOUT_S)
            response: pb.PublishVersionResponse = await send_all(call, _messages(files, version))
        except grpc.aio.AioRpcError as exc:
            error = store._connection.error_from(exc)
            stalls += 1
            if not isinstance(error, BROKEN_STREAM) or stalls > store._retry.max_stalls:
                raise error from exc
            await asyncio.sleep(store._retry.delay_s(stalls))
        else:
            store._written.take(response.published.revision, known_before)
            return response


async def _messages(
    files: Sequence[MemoryFile], version: pb.CreateVersionRequest
) -> AsyncGenerator[PublicationMessage, None]:
    """One message for little, and else a first one without bytes; the digest is computed while the others are sent."""
    first = pb.PublishVersionRequest(
        version=version, files=[pb.StreamedFile(path=file.path, size_bytes=file.size_bytes) for file in files]
    )
    parts = [memoryview(part).cast("B") for file in files for part in file.parts]
    if sum(file.size_bytes for file in files) <= ONE_MESSAGE_BYTES:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        first.data_digest = "sha256:" + digest.hexdigest()
        first.finish = True
        yield PublicationMessage(parts, first)
        return
    yield PublicationMessage(fields=first)
    digesting = StreamDigest()
    for chunk in _chunks(parts):
        for piece in chunk:
            await digesting.add(piece)
        yield PublicationMessage(chunk)
    last = pb.PublishVersionRequest(data_digest=await digesting.digest(), finish=True)
    yield PublicationMessage(fields=last)


def _chunks(parts: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The parts' bytes as views, together of one size."""
    pieces: list[memoryview] = []
    left = CHUNK_BYTES
    for part in parts:
        rest = part
        while rest:
            pieces.append(rest[:left])
            rest, left = rest[left:], left - len(pieces[-1])
            if not left:
                yield pieces
                pieces, left = [], CHUNK_BYTES
    if pieces:
        yield pieces


async def ready_workers(
    dial: Dial,
    holders: Sequence[VersionHolder],
    references: Sequence[str],
    min_revision: int,
    wait_s: float,
) -> tuple[ReadyWorker, ...]:
    """Have workers serve what references stand for now, all at once; each says itself when it does."""
    return tuple(await asyncio.gather(*(_ready(dial, each, references, min_revision, wait_s) for each in holders)))


async def _ready(
    dial: Dial, holder: VersionHolder, references: Sequence[str], min_revision: int, wait_s: float
) -> ReadyWorker:
    problem = ""
    try:
        async with asyncio.timeout(wait_s), dial(holder.endpoint) as worker:
            for reference in references:
                await worker.load(reference, timeout_s=wait_s, min_revision=min_revision)
    except TimeoutError:
        problem = f"it did not have the version within {wait_s:g} s"
    except HotslotError as exc:
        problem = exc.message
    return ReadyWorker(holder.worker_id, holder.endpoint, not problem, problem)
