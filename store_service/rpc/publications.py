"""Answers to the calls that publish versions: of files that were uploaded before, or that come with the call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

import structlog

from hotslot.codec import to_proto
from hotslot.contract.catalog import VersionHolder
from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError, RequestCancelledError
from hotslot.ids import TenantId, parse_digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_own_reference, parse_tag
from hotslot.rpc.publication_messages import ArrivedMessage
from shared.call_notes import call_notes
from shared.metrics.numbers import Tally
from shared.server.deadline import HasDeadline
from store_service.admission.admit import Checkpoint
from store_service.catalog.behind import VersionsBehind
from store_service.catalog.records import VersionRecord
from store_service.content.arrivals import ArrivalFolder, ArrivalStream, ArrivingFile
from store_service.execution.call_queue import CallQueue
from store_service.execution.fair_queue import FairQueue
from store_service.execution.offload import Offload
from store_service.placement.holders import Holders
from store_service.placement.serving import ServingAdvice
from store_service.pruner import Pruner
from store_service.publication import Publication
from store_service.registry import MAX_FILES, Registry
from store_service.rpc import contract, requests

log = structlog.get_logger(__name__)


def publication_of(request: pb.CreateVersionRequest) -> Publication:
    """A publication by a client; raises InvalidReferenceError."""
    return Publication(
        reference=parse_own_reference(request.reference),
        base_model=request.base_model,
        source="upload",
        labels=dict(request.labels),
        tag_etag=request.tag_etag,
        annotations=tuple(sorted(request.annotations.items())),
        tags=tuple(dict.fromkeys(parse_tag(tag) for tag in request.tags)),
        keep=request.keep_versions if request.HasField("keep_versions") else None,
    )


class Publications:
    """Admits what clients send. Lives on the event loop; a tenant's admissions take turns with the others'."""

    def __init__(
        self,
        registry: Registry,
        arrivals: ArrivalFolder,
        serving: ServingAdvice,
        behind: VersionsBehind,
        holders: Holders,
        pruner: Pruner,
        lookups: CallQueue,
        admission: FairQueue,
        threads: Offload,
    ) -> None:
        self._registry = registry
        self._arrivals = arrivals
        self._serving = serving
        self._behind = behind
        self._holders = holders
        self._pruner = pruner
        self._lookups = lookups
        self._admission = admission
        self._threads = threads
        self.received = Tally("hotslot_content_bytes_total", [("in",)])
        """Bytes of files that came with calls."""

    async def create(
        self, tenant: TenantId, request: pb.CreateVersionRequest, caller: HasDeadline
    ) -> pb.CreateVersionResponse:
        """Publish uploaded files."""
        publication, files = publication_of(request), requests.files_of(request.files)
        publish = self._registry.publish_uploaded
        published = await self._admission(tenant, caller.time_remaining(), publish, tenant, files, publication)
        return await self._answer(tenant, *published)

    async def publish(
        self, tenant: TenantId, messages: AsyncIterator[ArrivedMessage], caller: HasDeadline
    ) -> pb.PublishVersionResponse:
        """Publish files that come with the call."""
        first = await anext(messages, None)
        if first is None:
            raise InvalidRequestError([FieldViolation("version", "the stream has no message")])
        publication, files = publication_of(first.fields.version), _files_of(first.fields)
        stream = ArrivalStream(self._arrivals.begin(files), self._threads, self.received)
        looking = asyncio.ensure_future(self._holding(tenant, publication, caller))
        try:
            checkpoint = await _received(first, messages, stream)
            loop, left_s = asyncio.get_running_loop(), caller.time_remaining()
            publish = partial(
                self._registry.publish,
                on_admitted=lambda: loop.call_soon_threadsafe(stream.begin_discard),  # nothing reads the files again
            )
            published = await self._admission.to_its_end(tenant, left_s, publish, tenant, checkpoint, publication)
            answer = await self._answer(tenant, *published)
            holders = [to_proto(pb.VersionHolder, holder) for holder in await looking]
            return pb.PublishVersionResponse(published=answer, holders=holders)
        finally:
            looking.cancel()
            await asyncio.shield(stream.discard())

    async def _holding(
        self, tenant: TenantId, publication: Publication, caller: HasDeadline
    ) -> Sequence[VersionHolder]:
        """Workers that hold what the tags stand for before the publication."""
        reference = publication.reference
        tags = [tag for tag in (reference.tag, *publication.tags) if tag is not None]
        try:
            versions = await self._lookups(caller, self._behind, tenant, reference.name, tags)
            return await self._holders.of(tenant, versions)
        except (HotslotError, TimeoutError) as exc:  # a hint that is not there fails no publication
            log.info("no_holders_known", why=str(exc))
            return ()

    async def _answer(self, tenant: TenantId, record: VersionRecord, created: bool) -> pb.CreateVersionResponse:
        call_notes().digests = (record.manifest.digest,)
        self._pruner.note(tenant, record.adapter)
        record = await self._serving.advised(record)
        version = await self._threads(contract.version_message, record)
        warnings = contract.warning_messages(record.warnings)
        return pb.CreateVersionResponse(version=version, created=created, warnings=warnings, revision=record.revision)


def _files_of(first: pb.PublishVersionRequest) -> list[ArrivingFile]:
    """Files that a stream announces; raises InvalidRequestError with every field at fault."""
    problems: list[FieldViolation] = []
    if not 0 < len(first.files) <= MAX_FILES:
        problems.append(FieldViolation("files", f"found {len(first.files)}, expected 1 to {MAX_FILES}"))
    if first.version.files:
        problems.append(FieldViolation("version.files", "files that come with the call stand in `files`"))
    names: set[str] = set()
    for index, file in enumerate(first.files):
        if not file.path or file.path in names:
            problems.append(FieldViolation(f"files[{index}].path", f"{file.path!r} is empty or stands twice"))
        if file.size_bytes <= 0:
            found = f"found {file.size_bytes}, expected more than 0"
            problems.append(FieldViolation(f"files[{index}].size_bytes", found))
        names.add(file.path)
    if problems:
        raise InvalidRequestError(problems)
    return [ArrivingFile(file.path, file.size_bytes) for file in first.files]


async def _received(
    first: ArrivedMessage, messages: AsyncIterator[ArrivedMessage], stream: ArrivalStream
) -> Checkpoint:
    """The checkpoint, with the bytes to the last message. Raises as `Arrival.write` and `Arrival.finish`."""
    message: ArrivedMessage | None = first
    while message is not None:
        await stream.write(message.data)
        if message.fields.finish:
            return await stream.finish(parse_digest(message.fields.data_digest, field="data_digest"))
        message = await anext(messages, None)
    raise RequestCancelledError("the stream ended before its last message; nothing was published")
