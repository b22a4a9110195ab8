"""The worker's view of the store: references to versions, digests to verified bytes, base models made known.

Proto types of the store's contract stop here. An error of the store arrives as the same typed error; a store that
cannot be reached, or does not answer in time, is a StoreUnavailableError.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import NoReturn

import grpc
import numpy as np
import structlog

from hotslot.backoff import Backoff
from hotslot.codec import from_proto, to_proto
from hotslot.contract.catalog import AdapterEvent, AdapterEventKind, AdapterPolicy, BaseModel, PinnedVersion
from hotslot.digesting import StreamDigest
from hotslot.errors import (
    DigestMismatchError,
    HotslotError,
    InternalError,
    RequestDeadlineError,
    StoreBusyError,
    StoreUnavailableError,
    UnavailableError,
)
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import parse_manifest
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, adapter_store_pb2_grpc, blob_pb2
from hotslot.references import Reference
from hotslot.rpc.blob_chunks import BlobChunk, read_blob_of
from hotslot.rpc.min_revision import CATALOG_KEY
from hotslot.rpc.status import from_rpc_error
from hotslot.rpc.tenant import TENANT_KEY
from hotslot.tracing import span
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy
from shared.metrics.numbers import Spreads
from shared.recycled_memory import RecycledMemory
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind
from worker_service.adapters.fleet_calls import FleetCalls
from worker_service.adapters.version import AdapterVersion, ComingVersion, WantedVersion

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 1.0
MAX_PAUSE_S = 5.0
"""Between two streams of one blob."""


@dataclass(frozen=True, slots=True)
class StoreTimeouts:
    """Longest waits of the worker for the store."""

    call_s: float = 5.0
    """For an answer to a call."""
    chunk_s: float = 10.0
    """For the next chunk of a blob; after that the stream counts as broken."""
    max_breaks: int = 5
    """Broken streams in a row, without a byte between them, after which a blob is given up."""
    backoff_s: float = 0.1
    """Before the second of them; doubles each time, with jitter."""


class StoreView:
    """Calls to one store, for workers of one base model."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        base_model_digest: Digest,
        timeouts: StoreTimeouts = StoreTimeouts(),
    ) -> None:
        self._adapters = adapter_store_pb2_grpc.AdapterStoreServiceStub(channel)
        self._fleet = FleetCalls(channel)
        self._read_blob = read_blob_of(channel)
        self._base_model_digest = base_model_digest
        self._timeouts = timeouts
        self._memory = RecycledMemory()
        self.resolves = Spreads("hotslot_adapter_load_seconds", [("resolve",)])

    async def resolve(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """Ask what a reference stands for now.

        Raises AdapterNotFoundError, TagNotFoundError, VersionNotFoundError, BaseModelMismatchError,
        DigestMismatchError (a manifest that is not its digest's) and StoreUnavailableError.
        """
        request = adapter_store_pb2.ResolveAdapterRequest(
            reference=str(reference), base_model_digest=self._base_model_digest
        )
        began_s = time.monotonic()
        try:
            response = await self._adapters.ResolveAdapter(
                request, timeout=self._timeouts.call_s, metadata=((TENANT_KEY, tenant),)
            )
        except grpc.RpcError as exc:
            _raise_from(exc, f"resolving {reference}")
        self.resolves.add(time.monotonic() - began_s, "resolve")
        digest = Digest(response.version.digest)
        if reference.digest is not None and digest != reference.digest:
            raise DigestMismatchError(f"the store's answer for {reference}", digest, reference.digest)
        manifest = parse_manifest(response.version.manifest_json, digest)
        own = from_proto(AdapterPolicy, response.policy) if response.HasField("policy") else None
        policy = _policy_of(own) if own is not None else DEFAULT_REPLICA_POLICY
        return AdapterVersion(tenant, reference, digest, manifest, response.revision, policy)

    async def pinned(self) -> list[WantedVersion]:
        """Pinned versions of all tenants for workers of this base model. Raises StoreUnavailableError."""
        request = fleet_pb2.ListPinnedVersionsRequest(base_model_digest=self._base_model_digest)
        found: list[WantedVersion] = []
        while True:
            try:
                page = await self._fleet.pinned(request, self._timeouts.call_s)
            except grpc.RpcError as exc:
                _raise_from(exc, "listing pinned versions")
            found += [_wanted(from_proto(PinnedVersion, version)) for version in page.versions]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def watch(
        self, tenant: TenantId, after_revision: int
    ) -> AsyncGenerator[CatalogChange | ComingVersion | str, None]:
        """The catalog's id (empty where the store does not tell it), then a tenant's changes after a revision.

        Versions that are about to be published come in between, if the store tells of them.

        Raises RevisionCompactedError, StoreUnavailableError, and what else the store does.
        """
        request = adapter_store_pb2.WatchAdaptersRequest(from_revision=after_revision, announcements=True)
        call = self._adapters.WatchAdapters(request, metadata=((TENANT_KEY, tenant),))
        try:
            headers = await call.initial_metadata()
            yield str(dict(headers or ()).get(CATALOG_KEY, ""))
            async for event in call:
                yield _change_of(from_proto(AdapterEvent, event))
        except grpc.RpcError as exc:
            _raise_from(exc, "watching the catalog")
        finally:
            call.cancel()

    async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> memoryview:
        """Fetch a whole blob; a broken stream is continued where it broke.

        Raises DigestMismatchError when the bytes are not the digest's (they are never returned), the store's own
        errors, and StoreUnavailableError when the stream keeps breaking.
        """
        buffer = self._memory.take(size_bytes)
        digesting = StreamDigest(also=_Gathering(buffer))
        with span("hotslot.load.fetch", {"hotslot.blob.digest": digest, "hotslot.blob.size": size_bytes}):
            await self._fetch(tenant, digest, size_bytes, digesting)
        with span("hotslot.load.verify"):
            found = await digesting.digest()
        if found != digest:
            raise DigestMismatchError("weights from the store", found, digest)
        return buffer

    async def _fetch(self, tenant: TenantId, digest: Digest, size_bytes: int, digesting: StreamDigest) -> None:
        position, breaks = 0, 0
        while position < size_bytes:
            start = position
            try:
                async for data in self._chunks(tenant, digest, position, size_bytes):
                    await digesting.add(data)
                    position += len(data)
                if position < size_bytes:
                    # Not broken off: the store believes that this is all.
                    raise DigestMismatchError(
                        "weights from the store", f"only {position} of {size_bytes} bytes", digest
                    )
                break
            except (UnavailableError, RequestDeadlineError) as exc:
                broken: HotslotError = exc
            breaks = breaks + 1 if position == start else 1
            if breaks >= self._timeouts.max_breaks:
                raise StoreUnavailableError(
                    f"reading blob {digest} broke off at byte {position} of {size_bytes}, {breaks} times in a row: "
                    f"{broken.message}",
                    retry_after_s=RETRY_AFTER_S,
                ) from broken
            log.warning("blob_resumed", digest=digest, position=position, size_bytes=size_bytes, why=broken.message)
            await asyncio.sleep(Backoff(self._timeouts.backoff_s, MAX_PAUSE_S).pause_s(breaks - 1))

    async def register_base_model(self, spec: BaseSpec) -> None:
        """Make the worker's base model known; again changes nothing.

        Raises StoreUnavailableError, and BaseModelNameTakenError when its name stands for another one.
        """
        message = to_proto(adapter_store_pb2.BaseModel, BaseModel(spec, spec.digest))
        try:
            await self._adapters.RegisterBaseModel(
                adapter_store_pb2.RegisterBaseModelRequest(base_model=message), timeout=self._timeouts.call_s
            )
        except grpc.RpcError as exc:
            _raise_from(exc, f"registering base model {spec.name}")

    async def issue_epoch(self) -> int:
        """A fencing number larger than every one before it. Raises StoreUnavailableError."""
        try:
            return await self._fleet.issue_epoch(self._timeouts.call_s)
        except grpc.RpcError as exc:
            _raise_from(exc, "asking for an epoch")

    async def _chunks(
        self, tenant: TenantId, digest: Digest, offset: int, size_bytes: int
    ) -> AsyncIterator[memoryview]:
        """The blob's bytes from an offset on, as one stream brings them."""
        request = blob_pb2.ReadBlobRequest(digest=digest, offset=offset, announced=True)
        call = self._read_blob(request, metadata=((TENANT_KEY, tenant),))
        position = offset
        try:
            while True:
                async with asyncio.timeout(self._timeouts.chunk_s):
                    chunk = await call.read()
                if not isinstance(chunk, BlobChunk):  # grpc's end-of-stream marker
                    return
                if chunk.offset != position or chunk.size_bytes != size_bytes:
                    raise InternalError(
                        f"the store sent bytes {chunk.offset} of a blob of {chunk.size_bytes} for {digest}, "
                        f"expected byte {position} of {size_bytes}"
                    )
                position += len(chunk.data)
                if position > size_bytes:
                    raise DigestMismatchError("weights from the store", f"{position} bytes or more", digest)
                yield chunk.data
        except grpc.RpcError as exc:
            _raise_from(exc, f"reading blob {digest}")
        except TimeoutError as exc:
            raise StoreUnavailableError(
                f"the store sent nothing of blob {digest} for {self._timeouts.chunk_s} s",
                retry_after_s=RETRY_AFTER_S,
            ) from exc
        finally:
            call.cancel()


class _Gathering:
    """Copies pieces side by side. numpy lets other threads run meanwhile; a memoryview would not."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = np.frombuffer(buffer, np.uint8)
        self._end = 0

    def __call__(self, piece: bytes | memoryview) -> None:
        begin, self._end = self._end, self._end + len(piece)
        self._buffer[begin : self._end] = np.frombuffer(piece, np.uint8)


def _policy_of(policy: AdapterPolicy) -> ReplicaPolicy:
    return ReplicaPolicy(policy.min_replicas, policy.max_replicas or None, policy.pinned)


def _wanted(version: PinnedVersion) -> WantedVersion:
    policy = version.policy
    return WantedVersion(version.tenant, AdapterName(policy.adapter), version.digest, _policy_of(policy))


def _change_of(event: AdapterEvent) -> CatalogChange | ComingVersion:
    if event.kind is AdapterEventKind.VERSION_COMING:
        return ComingVersion(
            AdapterName(event.adapter), TagName(event.tag), Digest(event.digest), bytes(event.manifest_json)
        )
    kind = ChangeKind(event.kind) if event.kind in _KINDS_OF_CHANGE else ChangeKind.OTHER
    return CatalogChange(event.revision, kind, AdapterName(event.adapter), TagName(event.tag), Digest(event.digest))


_KINDS_OF_CHANGE = frozenset(kind.value for kind in ChangeKind)


def _raise_from(failure: grpc.RpcError, what: str) -> NoReturn:
    """Raise the store's own error; a silent store counts as one that is away."""
    error = from_rpc_error(failure, unavailable=StoreUnavailableError)
    if isinstance(error, RequestDeadlineError):
        error = StoreUnavailableError(f"{what}: the store did not answer in time", retry_after_s=RETRY_AFTER_S)
    elif isinstance(error, StoreBusyError):
        # Not for this worker's callers to wait for: they may ask another worker.
        error = StoreUnavailableError(error.message, retry_after_s=error.retry_after_s)
    raise error from failure
