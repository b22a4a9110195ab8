"""A store in memory behind real gRPC sockets, for workers: it resolves and reads, and misbehaves on demand."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from hotslot.errors import (
    AdapterNotFoundError,
    BadOffsetError,
    BaseModelMismatchError,
    BlobNotFoundError,
    HotslotError,
    StoreUnavailableError,
    TagNotFoundError,
    VersionNotFoundError,
    Violation,
)
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb2
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc, blob_pb2, blob_pb2_grpc
from hotslot.references import parse_reference
from hotslot.rpc.tenant import tenant_of
from shared.server.grpc_server import Service, service

CHUNK_BYTES = 1_024


@dataclass
class MemoryStore(adapter_store_pb2_grpc.AdapterStoreServiceServicer, blob_pb2_grpc.BlobServiceServicer):
    """Versions and tags by tenant and name, blobs by tenant and digest."""

    versions: dict[tuple[TenantId, str], dict[Digest, Manifest]] = field(default_factory=dict)
    tags: dict[tuple[TenantId, str], dict[str, Digest]] = field(default_factory=dict)
    blobs: dict[tuple[TenantId, str], bytes] = field(default_factory=dict)
    base_models: list[str] = field(default_factory=list)
    break_reads_after: deque[int] = field(default_factory=deque)
    """Bytes after which the next streams break."""
    resolve_error: HotslotError | None = None
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    """While cleared, streams hang before their first byte."""
    read_offsets: list[int] = field(default_factory=list)
    resolves: int = 0
    epochs: int = 0
    active_reads: int = 0

    def __post_init__(self) -> None:
        self.reading.set()

    def add(
        self,
        name: str,
        base_model_digest: Digest,
        *,
        seed: int = 0,
        tag: str = "latest",
        rank: int = 8,
        size_bytes: int = 5_000,
        tenant: TenantId = DEFAULT_TENANT,
        truncated: bool = False,
        end_token_ids: tuple[int, ...] = (),
    ) -> Digest:
        """Publish a version under a tag; a truncated one loses the end of its stored bytes."""
        blob = (f"{name} {seed} ".encode() * size_bytes)[:size_bytes]
        modules = (AdapterModule("q_proj", rank, 2.0),)
        manifest = Manifest(base_model_digest, digest_of(blob), size_bytes, "F32", modules, end_token_ids)
        key = (tenant, name)
        self.versions.setdefault(key, {})[manifest.digest] = manifest
        self.tags.setdefault(key, {})[tag] = manifest.digest
        self.blobs[tenant, manifest.weights_digest] = blob[: size_bytes // 2] if truncated else blob
        return manifest.digest

    def remove(self, name: str) -> None:
        """Delete an adapter of the default tenant."""
        del self.versions[DEFAULT_TENANT, name], self.tags[DEFAULT_TENANT, name]

    def services(self) -> list[Service]:
        """What `serve` takes."""
        add_store = adapter_store_pb2_grpc.add_AdapterStoreServiceServicer_to_server
        return [
            service(store_pb2, "AdapterStoreService", add_store, self),
            service(blob_pb2, "BlobService", blob_pb2_grpc.add_BlobServiceServicer_to_server, self),
        ]

    async def ResolveAdapter(self, request: store_pb2.ResolveAdapterRequest, context: Any) -> Any:
        self.resolves += 1
        if self.resolve_error is not None:
            raise self.resolve_error
        reference = parse_reference(request.reference)
        key = (tenant_of(context), str(reference.name))
        if key not in self.versions:
            raise AdapterNotFoundError(reference.name)
        if reference.digest is not None:
            if reference.digest not in self.versions[key]:
                raise VersionNotFoundError(reference.name, reference.digest)
            digest = reference.digest
        else:
            assert reference.tag is not None
            if reference.tag not in self.tags[key]:
                raise TagNotFoundError(reference.name, reference.tag)
            digest = self.tags[key][reference.tag]
        manifest = self.versions[key][digest]
        if request.base_model_digest not in ("", manifest.base_model_digest):
            found, expected = manifest.base_model_digest, request.base_model_digest
            message = f"{reference} is for base model {found}, not {expected}"
            raise BaseModelMismatchError([Violation("BASE_MODEL_MISMATCH", "base_model", found, expected, message)])
        version = store_pb2.Version(adapter=reference.name, digest=digest, manifest_json=manifest.canonical_json())
        return store_pb2.ResolveAdapterResponse(version=version, revision=1)

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Any) -> AsyncIterator[Any]:
        self.active_reads += 1
        try:
            await self.reading.wait()
            blob = self.blobs.get((tenant_of(context), request.digest))
            if blob is None:
                raise BlobNotFoundError(request.digest)
            if request.offset > len(blob):
                raise BadOffsetError(request.digest, request.offset, len(blob))
            self.read_offsets.append(request.offset)
            limit = self.break_reads_after.popleft() if self.break_reads_after else None
            size_bytes = next(
                manifest.weights_size_bytes
                for versions in self.versions.values()
                for manifest in versions.values()
                if manifest.weights_digest == request.digest
            )
            for offset in range(request.offset, len(blob), CHUNK_BYTES):
                if limit is not None and offset - request.offset >= limit:
                    raise StoreUnavailableError("the stream broke")
                data = blob[offset : offset + CHUNK_BYTES]
                yield blob_pb2.ReadBlobResponse(data=data, offset=offset, size_bytes=size_bytes)
        finally:
            self.active_reads -= 1

    async def IssueEpoch(self, request: store_pb2.IssueEpochRequest, context: Any) -> Any:
        self.epochs += 1
        return store_pb2.IssueEpochResponse(epoch=self.epochs)

    async def RegisterBaseModel(self, request: store_pb2.RegisterBaseModelRequest, context: Any) -> Any:
        self.base_models.append(request.base_model.digest)
        return store_pb2.RegisterBaseModelResponse(base_model=request.base_model, created=True)


def memory_store() -> MemoryStore:
    """An empty one; the RPCs that it does not have answer UNIMPLEMENTED."""
    return MemoryStore()  # type: ignore[abstract]
