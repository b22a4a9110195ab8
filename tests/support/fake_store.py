"""A store in memory behind real gRPC sockets, whose streams break where a test asks for it."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from hotslot.errors import (
    AdapterNotFoundError,
    BadOffsetError,
    DigestMismatchError,
    HotslotError,
    InvalidAdapterError,
    NotDeletedError,
    NoWorkersError,
    QuotaExceededError,
    StoreUnavailableError,
    VersionInUseError,
    Violation,
)
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.pb.hotslot.placement.v1 import placement_pb2, placement_pb2_grpc
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb2
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc, blob_pb2, blob_pb2_grpc
from hotslot.rpc.tenant import tenant_of
from shared.server.grpc_server import Service, service

CHUNK_BYTES = 64 * 1024


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class FakeBlobs(blob_pb2_grpc.BlobServiceServicer):
    """Blobs by digest; `break_writes_after` and `break_reads_after` hold one byte count per stream to break."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.staged: dict[str, bytearray] = {}
        self.break_writes_after: deque[int] = deque()
        self.break_reads_after: deque[int] = deque()
        self.quota_bytes: int | None = None
        self.write_offsets: list[int] = []
        self.read_offsets: list[int] = []

    async def FindMissingBlobs(self, request: blob_pb2.FindMissingBlobsRequest, context: Any) -> Any:
        missing = [digest for digest in request.digests if digest not in self.stored]
        return blob_pb2.FindMissingBlobsResponse(missing_digests=missing)

    async def GetWriteStatus(self, request: blob_pb2.GetWriteStatusRequest, context: Any) -> Any:
        if request.digest in self.stored:
            size = len(self.stored[request.digest])
            return blob_pb2.GetWriteStatusResponse(committed_size=size, complete=True)
        return blob_pb2.GetWriteStatusResponse(committed_size=len(self.staged.get(request.digest, b"")))

    async def WriteBlob(self, requests: AsyncIterator[blob_pb2.WriteBlobRequest], context: Any) -> Any:
        limit = self.break_writes_after.popleft() if self.break_writes_after else None
        received, digest = 0, ""
        async for request in requests:
            if not digest:
                self.write_offsets.append(request.offset)
                digest = request.digest
            staged = self.staged.setdefault(digest, bytearray())
            if request.offset != len(staged):
                raise BadOffsetError(f"upload of {digest}", request.offset, len(staged))
            if limit is not None and received + len(request.data) > limit:
                raise StoreUnavailableError("the stream broke")
            if self.quota_bytes is not None and len(staged) + len(request.data) > self.quota_bytes:
                raise QuotaExceededError("the quota is used up", subject="tenant")
            staged.extend(request.data)
            received += len(request.data)
            if request.finish:
                found = digest_of(bytes(staged))
                if found != digest:
                    del self.staged[digest]
                    raise DigestMismatchError("upload", found, digest)
                self.stored[digest] = bytes(self.staged.pop(digest))
                return blob_pb2.WriteBlobResponse(digest=digest, committed_size=received, complete=True)
        raise StoreUnavailableError("the stream ended without finish")

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Any) -> AsyncIterator[Any]:
        self.read_offsets.append(request.offset)
        limit = self.break_reads_after.popleft() if self.break_reads_after else None
        data = self.stored[request.digest]
        sent = 0
        for offset in range(request.offset, len(data), CHUNK_BYTES):
            if limit is not None and sent >= limit:
                raise StoreUnavailableError("the stream broke")
            chunk = data[offset : offset + CHUNK_BYTES]
            yield blob_pb2.ReadBlobResponse(data=chunk, offset=offset, size_bytes=len(data))
            sent += len(chunk)


@dataclass
class Calls:
    """What the fake was asked."""

    tenants: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    create: list[store_pb2.CreateVersionRequest] = field(default_factory=list)
    watch_from: list[int | None] = field(default_factory=list)
    imports: int = 0
    import_requests: list[store_pb2.ImportAdapterRequest] = field(default_factory=list)
    picks: int = 0
    deleted: list[str] = field(default_factory=list)
    set_tags: list[store_pb2.SetTagRequest] = field(default_factory=list)


def make_version(name: str = "pirate", **fields: Any) -> store_pb2.Version:
    manifest = Manifest(
        base_model_digest=digest_of(b"base"),  # type: ignore[arg-type]
        weights_digest=digest_of(b"weights"),  # type: ignore[arg-type]
        weights_size_bytes=1_234_567,
        dtype="BF16",
        modules=(AdapterModule("model.layers.0.self_attn.q_proj", 16, 2.0),),
    )
    message = store_pb2.Manifest(
        base_model_digest=manifest.base_model_digest,
        weights_digest=manifest.weights_digest,
        weights_size_bytes=manifest.weights_size_bytes,
        max_rank=16,
        dtype="BF16",
    )
    return store_pb2.Version(
        adapter=name,
        digest=manifest.digest,
        manifest=message,
        manifest_json=manifest.canonical_json(),
        base_model="org/base",
        source="upload",
        tags=["latest"],
        **fields,
    )


class FakeCatalogService(adapter_store_pb2_grpc.AdapterStoreServiceServicer):
    """A catalog of scripted answers."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.refuse: InvalidAdapterError | None = None
        self.before_creating: deque[Callable[[], None]] = deque()
        self.violations: tuple[Violation, ...] = ()
        self.adapters = [
            store_pb2.Adapter(name=f"adapter-{index}", num_versions=1, latest_version=make_version())
            for index in range(5)
        ]
        self.list_failures: deque[HotslotError] = deque()
        self.revision = 0
        self.is_quiet = False
        """Whether a watch without events waits, rather than breaks."""
        self.events: deque[list[store_pb2.WatchAdaptersResponse]] = deque()
        self.break_imports = 0
        self.imports_stand_s = 0.0
        """How long an import's stream is quiet before it breaks."""
        self.warnings: list[store_pb2.Warning] = []
        self.import_failure: HotslotError = StoreUnavailableError("the stream broke")

    async def CreateVersion(self, request: store_pb2.CreateVersionRequest, context: Any) -> Any:
        self.calls.create.append(request)
        self.calls.tenants.append(tenant_of(context))
        if self.before_creating:
            self.before_creating.popleft()()
        if self.refuse is not None:
            raise self.refuse
        return store_pb2.CreateVersionResponse(version=make_version(), created=True, warnings=self.warnings)

    async def ValidateAdapter(self, request: store_pb2.ValidateAdapterRequest, context: Any) -> Any:
        return store_pb2.ValidateAdapterResponse(
            valid=not self.violations,
            violations=[
                store_pb2.Violation(
                    code=v.code, subject=v.subject, found=v.found, expected=v.expected, message=v.message
                )
                for v in self.violations
            ],
            warnings=self.warnings,
        )

    async def ListAdapters(self, request: store_pb2.ListAdaptersRequest, context: Any) -> Any:
        if self.list_failures:
            raise self.list_failures.popleft()
        if request.name_prefix:
            return store_pb2.ListAdaptersResponse(revision=self.revision)
        self.calls.pages.append(request.page_token)
        start = int(request.page_token or 0)
        end = start + 2
        token = str(end) if end < len(self.adapters) else ""
        return store_pb2.ListAdaptersResponse(
            adapters=self.adapters[start:end], next_page_token=token, revision=self.revision
        )

    async def GetAdapter(self, request: store_pb2.GetAdapterRequest, context: Any) -> Any:
        for adapter in self.adapters:
            if adapter.name == request.name:
                return store_pb2.GetAdapterResponse(adapter=adapter)
        raise AdapterNotFoundError(request.name)

    async def ResolveAdapter(self, request: store_pb2.ResolveAdapterRequest, context: Any) -> Any:
        return store_pb2.ResolveAdapterResponse(version=make_version(), revision=7)

    async def SetTag(self, request: store_pb2.SetTagRequest, context: Any) -> Any:
        self.calls.set_tags.append(request)
        return store_pb2.SetTagResponse(tag=store_pb2.Tag(name=request.tag, digest=request.digest, etag="e1"))

    async def ListVersions(self, request: store_pb2.ListVersionsRequest, context: Any) -> Any:
        return store_pb2.ListVersionsResponse(versions=[make_version(request.adapter)])

    async def DeleteTag(self, request: store_pb2.DeleteTagRequest, context: Any) -> Any:
        self.calls.deleted.append(f"{request.adapter}:{request.tag}")
        return store_pb2.DeleteTagResponse()

    async def DeleteAdapter(self, request: store_pb2.DeleteAdapterRequest, context: Any) -> Any:
        self.calls.deleted.append(request.name)
        (adapter,) = (adapter for adapter in self.adapters if adapter.name == request.name)
        adapter.delete_time.FromSeconds(1_767_225_600)
        adapter.purge_time.FromSeconds(1_767_225_600 + 90 * 60)
        return store_pb2.DeleteAdapterResponse(adapter=adapter)

    async def UndeleteAdapter(self, request: store_pb2.UndeleteAdapterRequest, context: Any) -> Any:
        (adapter,) = (adapter for adapter in self.adapters if adapter.name == request.name)
        if not adapter.HasField("delete_time"):
            raise NotDeletedError(request.name)
        adapter.ClearField("delete_time")
        adapter.ClearField("purge_time")
        return store_pb2.UndeleteAdapterResponse(adapter=adapter)

    async def DeleteVersion(self, request: store_pb2.DeleteVersionRequest, context: Any) -> Any:
        if not request.force:
            raise VersionInUseError(request.adapter, request.digest, ["latest"])
        self.calls.deleted.append(f"{request.adapter}@{request.digest}")
        return store_pb2.DeleteVersionResponse()

    async def WatchAdapters(self, request: store_pb2.WatchAdaptersRequest, context: Any) -> AsyncIterator[Any]:
        self.calls.watch_from.append(request.from_revision if request.HasField("from_revision") else None)
        if self.is_quiet and not self.events:
            await asyncio.Event().wait()
        for event in self.events.popleft() if self.events else ():
            yield event
        raise StoreUnavailableError("the stream broke")

    async def ImportAdapter(self, request: store_pb2.ImportAdapterRequest, context: Any) -> AsyncIterator[Any]:
        self.calls.imports += 1
        self.calls.import_requests.append(request)
        yield store_pb2.ImportAdapterResponse(
            progress=store_pb2.ImportProgress(stage=store_pb2.IMPORT_STAGE_FETCHING, done_bytes=10, total_bytes=20)
        )
        if self.calls.imports <= self.break_imports:
            await asyncio.sleep(self.imports_stand_s)
            raise self.import_failure
        yield store_pb2.ImportAdapterResponse(version=make_version(), warnings=self.warnings)


class FakePlacement(placement_pb2_grpc.PlacementServiceServicer):
    """Picks the endpoints it was given, in their order."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.endpoints: list[str] = []
        self.ttl_s = 60
        self.failure: HotslotError | None = None

    async def PickWorkers(self, request: placement_pb2.PickWorkersRequest, context: Any) -> Any:
        self.calls.picks += 1
        if self.failure is not None:
            raise self.failure
        if not self.endpoints:
            raise NoWorkersError("the pool has no worker that takes requests")
        response = placement_pb2.PickWorkersResponse(
            candidates=[
                placement_pb2.WorkerCandidate(
                    worker=placement_pb2.Worker(worker_id=f"w-{index}", endpoint=endpoint),
                    tier=placement_pb2.TIER_SLOT,
                )
                for index, endpoint in enumerate(self.endpoints)
            ]
        )
        response.ttl.seconds = self.ttl_s
        return response

    async def ListWorkers(self, request: placement_pb2.ListWorkersRequest, context: Any) -> Any:
        worker = placement_pb2.Worker(
            worker_id="w-1",
            endpoint=self.endpoints[0] if self.endpoints else "127.0.0.1:1",
            base_model="org/base",
            state=placement_pb2.WORKER_STATE_READY,
            load=placement_pb2.WorkerLoad(
                running_sequences=2, max_sequences=8, free_slots=7, num_slots=8, kv_usage=0.25
            ),
        )
        return placement_pb2.ListWorkersResponse(workers=[worker])

    async def ListPlacements(self, request: placement_pb2.ListPlacementsRequest, context: Any) -> Any:
        placement = placement_pb2.Placement(
            adapter_digest="sha256:" + "ab" * 32,
            worker_id="w-1",
            tier=placement_pb2.TIER_SLOT,
            pinned=True,
            adapter="pirate",
        )
        return placement_pb2.ListPlacementsResponse(placements=[placement])


@dataclass
class FakeStore:
    """All services of a store's process."""

    blobs: FakeBlobs
    catalog: FakeCatalogService
    placement: FakePlacement

    @staticmethod
    def create() -> "FakeStore":
        # What a fake does not answer, the generated base class answers with UNIMPLEMENTED.
        catalog = FakeCatalogService()  # type: ignore[abstract]
        return FakeStore(FakeBlobs(), catalog, FakePlacement(catalog.calls))  # type: ignore[abstract]

    def services(self) -> list[Service]:
        return [
            service(blob_pb2, "BlobService", blob_pb2_grpc.add_BlobServiceServicer_to_server, self.blobs),
            service(
                store_pb2,
                "AdapterStoreService",
                adapter_store_pb2_grpc.add_AdapterStoreServiceServicer_to_server,
                self.catalog,
            ),
            service(
                placement_pb2,
                "PlacementService",
                placement_pb2_grpc.add_PlacementServiceServicer_to_server,
                self.placement,
            ),
        ]
