"""A store in memory behind real gRPC sockets: what workers and clients need of one, with faults on request.

`tests/contract/test_store_in_memory.py` holds every answer against the real store's.
"""

from dataclasses import dataclass, field

from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, AdapterName, Digest, TagName, TenantId, digest_of
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from hotslot.pb.hotslot.placement.v1 import placement_pb2, placement_pb2_grpc
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, adapter_store_pb2_grpc, blob_pb2, blob_pb2_grpc
from hotslot.references import Reference
from shared.server.grpc_server import Service, service
from store_service.catalog.records import NewVersion
from tests.support.memory_blobs import MemoryBlobs
from tests.support.memory_catalog import MemoryCatalog
from tests.support.memory_placement import MemoryFleet, MemoryPlacement


@dataclass
class MemoryStore:
    """All services of a store's process. What they lack, the generated classes answer with UNIMPLEMENTED."""

    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    catalog: MemoryCatalog = field(init=False)
    placement: MemoryPlacement = field(init=False)
    fleet: MemoryFleet = field(init=False)

    def __post_init__(self) -> None:
        self.catalog = MemoryCatalog(self.blobs)  # type: ignore[abstract]
        self.placement = MemoryPlacement(self.catalog)  # type: ignore[abstract]
        self.fleet = MemoryFleet()  # type: ignore[abstract]

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
        pattern = f"{name} {seed} ".encode()
        blob = (pattern * (size_bytes // len(pattern) + 1))[:size_bytes]
        modules = (AdapterModule("q_proj", rank, 2.0),)
        manifest = Manifest(base_model_digest, digest_of(blob), size_bytes, "F32", modules, end_token_ids)
        self.blobs.publish(tenant, blob, truncated=truncated)
        reference = Reference(AdapterName(name), TagName(tag), None)
        self.catalog.tenants[tenant].create_version(reference, NewVersion(manifest, "org/base", "upload", "{}"))
        return manifest.digest

    def move_tag(self, name: str, tag: str, digest: Digest, tenant: TenantId = DEFAULT_TENANT) -> None:
        """Point a tag at a version."""
        self.catalog.tenants[tenant].set_tag(name, TagName(tag), digest)

    def remove(self, name: str, tenant: TenantId = DEFAULT_TENANT) -> None:
        """Delete an adapter."""
        self.catalog.tenants[tenant].delete(name)

    def services(self) -> list[Service]:
        """The services, for `serve`."""
        add_store = adapter_store_pb2_grpc.add_AdapterStoreServiceServicer_to_server
        add_placement = placement_pb2_grpc.add_PlacementServiceServicer_to_server
        return [
            service(adapter_store_pb2, "AdapterStoreService", add_store, self.catalog),
            service(blob_pb2, "BlobService", blob_pb2_grpc.add_BlobServiceServicer_to_server, self.blobs),
            service(placement_pb2, "PlacementService", add_placement, self.placement),
            service(fleet_pb2, "FleetService", fleet_pb2_grpc.add_FleetServiceServicer_to_server, self.fleet),
        ]
