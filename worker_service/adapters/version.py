"""A version as a tenant's reference named it: what the worker knows before it has the weights."""

from dataclasses import dataclass, field
from typing import Protocol

from hotslot.formats.manifest import Manifest, parse_manifest
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.references import Reference, split_owner
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy

ReferenceKey = tuple[TenantId, Reference]
"""A tenant that calls, and what it names: its own adapter, or one that another tenant shares."""


def catalog_of(key: ReferenceKey) -> TenantId:
    """Tenant whose catalog has what is named."""
    return split_owner(key[1].name)[0] or key[0]


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """Version that a reference stood for when the store was asked, with its verified manifest."""

    tenant: TenantId
    reference: Reference
    digest: Digest
    manifest: Manifest
    revision: int = field(default=0, compare=False)
    """Revision of the tenant's catalog when this held; 0 where that is not known."""
    policy: ReplicaPolicy = field(default=DEFAULT_REPLICA_POLICY, compare=False)
    """The adapter's policy at that moment."""


@dataclass(frozen=True, slots=True)
class ComingVersion:
    """A version that the store is about to publish under a tag; until it did, nothing may be served with it."""

    name: AdapterName
    tag: TagName
    digest: Digest
    manifest_json: bytes

    def under(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """The version as a reference will name it; raises DigestMismatchError and InvalidAdapterError."""
        return AdapterVersion(tenant, reference, self.digest, parse_manifest(self.manifest_json, self.digest))


class ReferenceResolver(Protocol):
    """Store, as far as references go."""

    async def resolve(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """Ask now; raises HotslotError."""
        ...


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A version that its adapter's owner wants in memory before a request asks."""

    tenant: TenantId
    name: AdapterName
    digest: Digest
    policy: ReplicaPolicy
