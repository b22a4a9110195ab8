"""A version as a tenant's reference named it: what the worker knows before it has the weights."""

from dataclasses import dataclass, field

from shared.ids import Digest, TenantId
from shared.manifest import Manifest
from shared.placement.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy
from shared.references import Reference


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """What a reference stood for when the store was asked, with its verified manifest."""

    tenant: TenantId
    reference: Reference
    digest: Digest
    manifest: Manifest
    revision: int = field(default=0, compare=False)
    """Of the tenant's catalog, when this held; 0 where that is not known."""
    policy: ReplicaPolicy = field(default=DEFAULT_REPLICA_POLICY, compare=False)
    """Of the adapter, at that moment."""
