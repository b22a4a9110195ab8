"""Calls of the store's client on policies, retention and quotas; each is a method of `StoreClient`."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from hotslot.clients.publication_fields import retention_fields
from hotslot.clients.rpc import Connection
from hotslot.codec import build, from_proto
from hotslot.contract.catalog import AdapterPolicy, PruneReport
from hotslot.contract.quotas import TenantQuota
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.pool import Closable

PAGE_SIZE = 200


class StoreCalls(Closable, Protocol):
    """A client of the store, as far as these calls need it."""

    _connection: Connection
    _stub: Any
    _write: Any
    """Calls a method that writes, and remembers its revision."""


async def set_policy(
    self: StoreCalls,
    name: str,
    *,
    min_replicas: int = 0,
    max_replicas: int = 0,
    pinned: bool = False,
    keep_versions: int | None = None,
    untagged_ttl_s: float | None = None,
    etag: str = "",
) -> AdapterPolicy:
    """Say on how many workers an adapter should be; with an etag, only if its policy is unchanged since.

    `keep_versions` and `untagged_ttl_s` (0: none) are its retention, which None leaves as it is.
    """
    policy = {"min_replicas": min_replicas, "max_replicas": max_replicas, "pinned": pinned}
    retention = retention_fields(keep_versions, untagged_ttl_s)
    request = build(pb.SetAdapterPolicyRequest, policy | retention, adapter=name, etag=etag)
    return from_proto(AdapterPolicy, (await self._write(self._stub.SetAdapterPolicy, request)).policy)


async def quota(self: StoreCalls) -> TenantQuota:
    """Use and limit of each of the tenant's quotas."""
    return from_proto(TenantQuota, await self._connection.unary(self._stub.GetQuota, build(pb.GetQuotaRequest)))


async def get_policy(self: StoreCalls, name: str) -> AdapterPolicy:
    """An adapter's policy; raises PolicyNotFoundError where it goes by the defaults."""
    request = build(pb.GetAdapterPolicyRequest, adapter=name)
    return from_proto(AdapterPolicy, (await self._connection.unary(self._stub.GetAdapterPolicy, request)).policy)


async def list_policies(self: StoreCalls) -> AsyncGenerator[AdapterPolicy, None]:
    """All policies by adapter; pages are fetched as they are needed."""
    request = build(pb.ListAdapterPoliciesRequest, page_size=PAGE_SIZE)
    async for page in self._connection.pages(self._stub.ListAdapterPolicies, request):
        for policy in page.policies:
            yield from_proto(AdapterPolicy, policy)


async def delete_policy(self: StoreCalls, name: str, *, etag: str = "") -> None:
    """Remove an adapter's policy; the defaults hold again."""
    request = build(pb.DeleteAdapterPolicyRequest, adapter=name, etag=etag)
    await self._write(self._stub.DeleteAdapterPolicy, request)


async def prune(
    self: StoreCalls,
    name: str = "",
    *,
    keep_versions: int | None = None,
    untagged_ttl_s: float | None = None,
    dry_run: bool = False,
) -> PruneReport:
    """Remove versions by retention now: an adapter's, by its policy or these bounds, or all adapters'."""
    fields = {"adapter": name, "dry_run": dry_run}
    request = build(pb.PruneVersionsRequest, fields | retention_fields(keep_versions, untagged_ttl_s))
    return from_proto(PruneReport, await self._write(self._stub.PruneVersions, request))
