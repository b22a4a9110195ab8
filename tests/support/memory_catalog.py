"""AdapterStoreService of the store in memory: it admits everything, and fails where a test asks for it."""

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from hotslot.codec import from_proto, to_proto
from hotslot.contract.catalog import BaseModel
from hotslot.contract.moments import moment
from hotslot.contract.store_status import StorePart, StoreStatus
from hotslot.errors import (
    BaseModelMismatchError,
    BlobNotFoundError,
    HotslotError,
    InvalidAdapterError,
    StoreUnavailableError,
    Violation,
)
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import Digest, TagName, TenantId, digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc
from hotslot.references import parse_reference
from hotslot.rpc.server_facts import installed_version
from hotslot.rpc.tenant import tenant_of
from store_service.catalog.records import NewVersion, Resolution, VersionRecord
from store_service.rpc.contract import (
    adapter_message,
    event_of,
    resolution_message,
    summary_of,
    tag_of,
    version_message,
)
from tests.support.memory_adapters import NOW_S, MemoryAdapters
from tests.support.memory_adapters import summary_of as summary_record_of
from tests.support.memory_blobs import MemoryBlobs

CONFIG = "adapter_config.json"
PARTS = (StorePart("catalog", True), StorePart("disk", True), StorePart("redis", True, required=False))
"""Parts of a store with Redis and without object storage."""
HUB_COMMIT = "c" * 40


@dataclass
class CatalogCalls:
    """Requests that the catalog got."""

    tenants: list[str] = field(default_factory=list)
    """Of whoever created versions."""
    pages: list[str] = field(default_factory=list)
    create: list[pb.CreateVersionRequest] = field(default_factory=list)
    watch_from: list[int | None] = field(default_factory=list)
    imports: list[pb.ImportAdapterRequest] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    set_tags: list[pb.SetTagRequest] = field(default_factory=list)
    resolves: int = 0
    registered: list[str] = field(default_factory=list)
    """Digests of base models."""


class MemoryCatalog(adapter_store_pb2_grpc.AdapterStoreServiceServicer):
    """Adapters by tenant. What is not here, the generated class answers with UNIMPLEMENTED."""

    def __init__(self, blobs: MemoryBlobs) -> None:
        self.calls = CatalogCalls()
        self.blobs = blobs
        self.tenants: defaultdict[TenantId, MemoryAdapters] = defaultdict(MemoryAdapters)
        self.bases: dict[str, BaseModel] = {}
        self.refuse: InvalidAdapterError | None = None
        """Ends what would create a version."""
        self.violations: tuple[Violation, ...] = ()
        """Found by dry runs."""
        self.warnings: list[pb.Warning] = []
        self.before_creating: deque[Callable[[], None]] = deque()
        self.resolve_error: HotslotError | None = None
        self.parts = PARTS
        self.list_failures: deque[HotslotError] = deque()
        self.break_watches_after: deque[int] = deque()
        """Events after which the next watches break; later ones do not."""
        self.break_imports = 0
        """How many of the imports break."""
        self.imports_stand_s = 0.0
        """How long an import's stream is quiet before it breaks."""
        self.import_failure: HotslotError = StoreUnavailableError("the stream broke")
        self.page_size = 100
        """Most adapters on a page."""

    async def RegisterBaseModel(self, request: pb.RegisterBaseModelRequest, context: Any) -> Any:
        base = request.base_model
        self.calls.registered.append(base.digest)
        is_new = base.digest not in self.bases
        if is_new:
            base.create_time.FromSeconds(int(NOW_S))
            self.bases[base.digest] = from_proto(BaseModel, base)
        return pb.RegisterBaseModelResponse(base_model=to_proto(pb.BaseModel, self.bases[base.digest]), created=is_new)

    async def ValidateAdapter(self, request: pb.ValidateAdapterRequest, context: Any) -> Any:
        violations = [to_proto(pb.Violation, violation) for violation in self.violations]
        if violations:
            return pb.ValidateAdapterResponse(violations=violations, warnings=self.warnings)
        manifest = self._admit(tenant_of(context), request).manifest
        return pb.ValidateAdapterResponse(
            valid=True, manifest=to_proto(pb.Manifest, manifest), digest=manifest.digest, warnings=self.warnings
        )

    async def CreateVersion(self, request: pb.CreateVersionRequest, context: Any) -> Any:
        tenant = tenant_of(context)
        self.calls.create.append(request)
        self.calls.tenants.append(tenant)
        if self.before_creating:
            self.before_creating.popleft()()
        if self.refuse is not None:
            raise self.refuse
        reference = parse_reference(request.reference)
        new = self._admit(tenant, request)
        adapters = self.tenants[tenant]
        version, is_new = adapters.create_version(reference, new, dict(request.labels))
        return pb.CreateVersionResponse(
            version=version_message(version), created=is_new, warnings=self.warnings, revision=adapters.revision
        )

    def _admit(self, tenant: TenantId, request: pb.CreateVersionRequest | pb.ValidateAdapterRequest) -> NewVersion:
        """A version of the uploaded files, with other bytes than these: admission normalises."""
        files = {}
        for file in request.files:
            if file.digest not in self.blobs.uploads[tenant]:
                raise BlobNotFoundError(file.digest)
            files[file.path] = self.blobs.uploads[tenant][file.digest]
        rank = json.loads(files.get(CONFIG, b"{}")).get("r", 8)
        weights = next((data for path, data in files.items() if path != CONFIG), b"")
        return self._publish(tenant, b"admitted: " + weights, request.base_model, "upload", rank)

    def _publish(self, tenant: TenantId, weights: bytes, base_model: str, source: str, rank: int = 8) -> NewVersion:
        base = next((b for b in self.bases.values() if base_model in ("", b.spec.name, b.digest)), None)
        base_digest = base.digest if base is not None else digest_of(base_model.encode())
        module = AdapterModule("model.layers.0.self_attn.q_proj", rank, 2.0)
        manifest = Manifest(base_digest, digest_of(weights), len(weights), "F32", (module,))
        self.blobs.publish(tenant, weights)
        return NewVersion(manifest, base.spec.name if base is not None else base_model, source, "{}")

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Any) -> Any:
        adapter = self.tenants[tenant_of(context)].get(request.name)
        return pb.GetAdapterResponse(adapter=adapter_message(adapter.record(in_full=True)))

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Any) -> Any:
        if self.list_failures:
            raise self.list_failures.popleft()
        adapters = self.tenants[tenant_of(context)]
        found = adapters.listed(request.name_prefix, with_deleted=request.show_deleted)
        self.calls.pages.append(request.page_token)
        start = int(request.page_token or 0)
        end = start + min(request.page_size or self.page_size, self.page_size)
        return pb.ListAdaptersResponse(
            adapters=[adapter_message(adapter.record(in_full=False)) for adapter in found[start:end]],
            next_page_token=str(end) if end <= len(found) else "",
            revision=adapters.revision,
        )

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> Any:
        versions = self.tenants[tenant_of(context)].get(request.adapter).newest_first()
        summaries = [to_proto(pb.Version, summary_of(summary_record_of(version))) for version in versions]
        return pb.ListVersionsResponse(versions=summaries)

    async def GetStoreStatus(self, request: pb.GetStoreStatusRequest, context: Any) -> Any:
        ready = all(part.works for part in self.parts if part.required)
        return to_proto(pb.GetStoreStatusResponse, StoreStatus(ready, installed_version(), moment(0.0), self.parts))

    async def ResolveAdapter(self, request: pb.ResolveAdapterRequest, context: Any) -> Any:
        self.calls.resolves += 1
        if self.resolve_error is not None:
            raise self.resolve_error
        reference = parse_reference(request.reference)
        adapters = self.tenants[tenant_of(context)]
        version = adapters.resolve(reference)
        found, expected = version.manifest.base_model_digest, request.base_model_digest
        if expected not in ("", found):
            problem = f"it was admitted for {version.base_model}"
            violation = Violation.of("BASE_MODEL_MISMATCH", str(reference), found, expected, problem)
            raise BaseModelMismatchError([violation])
        return resolution_message(Resolution(version, None, adapters.revision))

    async def SetTag(self, request: pb.SetTagRequest, context: Any) -> Any:
        self.calls.set_tags.append(request)
        adapters = self.tenants[tenant_of(context)]
        tag = adapters.set_tag(request.adapter, TagName(request.tag), Digest(request.digest))
        return pb.SetTagResponse(tag=to_proto(pb.Tag, tag_of(tag)), revision=adapters.revision)

    async def DeleteTag(self, request: pb.DeleteTagRequest, context: Any) -> Any:
        adapters = self.tenants[tenant_of(context)]
        adapters.delete_tag(request.adapter, TagName(request.tag))
        self.calls.deleted.append(f"{request.adapter}:{request.tag}")
        return pb.DeleteTagResponse(revision=adapters.revision)

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Any) -> Any:
        adapters = self.tenants[tenant_of(context)]
        adapters.delete_version(request.adapter, Digest(request.digest), force=request.force)
        self.calls.deleted.append(f"{request.adapter}@{request.digest}")
        return pb.DeleteVersionResponse(revision=adapters.revision)

    async def DeleteAdapter(self, request: pb.DeleteAdapterRequest, context: Any) -> Any:
        adapters = self.tenants[tenant_of(context)]
        message = adapter_message(adapters.delete(request.name).record(in_full=True))
        self.calls.deleted.append(request.name)
        return pb.DeleteAdapterResponse(adapter=message, revision=adapters.revision)

    async def UndeleteAdapter(self, request: pb.UndeleteAdapterRequest, context: Any) -> Any:
        adapters = self.tenants[tenant_of(context)]
        message = adapter_message(adapters.undelete(request.name).record(in_full=True))
        return pb.UndeleteAdapterResponse(adapter=message, revision=adapters.revision)

    async def WatchAdapters(self, request: pb.WatchAdaptersRequest, context: Any) -> AsyncIterator[Any]:
        adapters = self.tenants[tenant_of(context)]
        asked = request.from_revision if request.HasField("from_revision") else None
        self.calls.watch_from.append(asked)
        limit = self.break_watches_after.popleft() if self.break_watches_after else None
        seen, num_sent = adapters.revision if asked is None else asked, 0
        while True:
            changed = adapters.changed
            for event in [event for event in adapters.events if event.revision > seen]:
                if num_sent == limit:
                    break
                yield to_proto(pb.WatchAdaptersResponse, event_of(event))
                seen, num_sent = event.revision, num_sent + 1
            if num_sent == limit:
                raise StoreUnavailableError("the stream broke")
            await changed.wait()

    async def ImportAdapter(self, request: pb.ImportAdapterRequest, context: Any) -> AsyncIterator[Any]:
        self.calls.imports.append(request)
        yield pb.ImportAdapterResponse(
            progress=pb.ImportProgress(stage=pb.IMPORT_STAGE_FETCHING, done_bytes=10, total_bytes=20)
        )
        if len(self.calls.imports) <= self.break_imports:
            await asyncio.sleep(self.imports_stand_s)
            raise self.import_failure
        tenant = tenant_of(context)
        version = self._import(tenant, request)
        yield pb.ImportAdapterResponse(
            version=version_message(version), warnings=self.warnings, revision=self.tenants[tenant].revision
        )

    def _import(self, tenant: TenantId, request: pb.ImportAdapterRequest) -> VersionRecord:
        """A version that the hub or a folder would have: everything is there."""
        is_hub = request.WhichOneof("source") == "hub"
        source = f"hf:{request.hub.repo_id}@{HUB_COMMIT}" if is_hub else f"dir:{request.directory.path}"
        new = self._publish(tenant, source.encode(), request.base_model, source)
        return self.tenants[tenant].create_version(parse_reference(request.reference), new)[0]
