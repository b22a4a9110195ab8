"""Quotas of what a tenant keeps: counted in the transaction that changes it, in the tenant's turn.

So publications at the same time, through several stores, never exceed a quota together. Each blob of weights counts for
a tenant once, and in full, whoever else has the same bytes. Deleted adapters that can be undeleted count for nothing
but a second bound on bytes: as much again as the quota, so that deleting frees room and cannot fill the disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Select, func, select

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import TenantQuotaError
from hotslot.ids import TenantId
from shared.quotas.limits import Limits, TenantLimits
from store_service.catalog.changes import Change, OnChange, changing
from store_service.catalog.database import reading
from store_service.catalog.tables import adapters, versions

STORED = (QuotaKind.ADAPTERS, QuotaKind.VERSIONS, QuotaKind.BYTES)
_ADVICE = {
    QuotaKind.ADAPTERS: "delete adapters",
    QuotaKind.VERSIONS: "delete versions, or keep fewer by a policy",
    QuotaKind.BYTES: "delete versions or adapters",
}


@dataclass(frozen=True, slots=True)
class StoredUse:
    """Use of what is stored, by one tenant."""

    counts: dict[QuotaKind, int]
    with_deleted_bytes: int
    """Bytes with those of adapters that can be undeleted."""


def use_of(connection: Connection, tenant: TenantId) -> StoredUse:
    """What a tenant keeps now."""
    is_live = adapters.c.delete_time_s.is_(None)
    num_adapters = select(func.count()).select_from(adapters).where(adapters.c.tenant == tenant, is_live)
    of_tenant = select(versions).join(adapters, adapters.c.id == versions.c.adapter_id)
    of_tenant = of_tenant.where(adapters.c.tenant == tenant)
    live = of_tenant.where(is_live)
    num_versions = select(func.count()).select_from(live.subquery())
    return StoredUse(
        {
            QuotaKind.ADAPTERS: connection.execute(num_adapters).scalar_one(),
            QuotaKind.VERSIONS: connection.execute(num_versions).scalar_one(),
            QuotaKind.BYTES: _bytes(connection, live),
        },
        _bytes(connection, of_tenant),
    )


def _bytes(connection: Connection, found: Select[tuple[object, ...]]) -> int:
    """Bytes of the distinct blobs of some versions."""
    each = found.with_only_columns(func.max(versions.c.weights_size_bytes).label("size")).group_by(
        versions.c.weights_digest
    )
    return int(connection.execute(select(func.coalesce(func.sum(each.subquery().c.size), 0))).scalar_one())


class StoredQuotas:
    """Quotas of what the catalog has. Everything here blocks."""

    def __init__(self, limits: TenantLimits) -> None:
        self._limits = limits

    def before(self, connection: Connection, tenant: TenantId) -> StoredUse | None:
        """Use before a change, inside its transaction; None where nothing is limited."""
        limits = self._limits.of(tenant)
        return use_of(connection, tenant) if any(kind in limits for kind in STORED) else None

    def check(self, connection: Connection, tenant: TenantId, before: StoredUse | None) -> None:
        """Raise TenantQuotaError where the change grew something beyond its limit; the transaction undoes it then."""
        if before is None:
            return
        limits, after = self._limits.of(tenant), use_of(connection, tenant)
        for kind in STORED:
            limit, used = limits.get(kind), before.counts[kind]
            if limit is not None and after.counts[kind] > max(limit, used):
                raise TenantQuotaError(tenant, kind.value, limit, used, advice=_advice(kind, after.counts[kind] - used))
        _check_deleted(tenant, limits, before, after)


def _check_deleted(tenant: TenantId, limits: Limits, before: StoredUse, after: StoredUse) -> None:
    limit = limits.get(QuotaKind.BYTES)
    if limit is not None and after.with_deleted_bytes > max(2 * limit, before.with_deleted_bytes):
        deleted = before.with_deleted_bytes - before.counts[QuotaKind.BYTES]
        advice = f"{deleted:,} bytes more are kept of deleted adapters until they cannot be undeleted any more"
        raise TenantQuotaError(tenant, QuotaKind.BYTES.value, limit, before.counts[QuotaKind.BYTES], advice=advice)


NO_QUOTAS = StoredQuotas(TenantLimits())


@contextmanager
def growing(
    engine: Engine, on_change: OnChange, quotas: StoredQuotas, tenant: TenantId
) -> Iterator[tuple[Connection, Change]]:
    """A change that may grow what a tenant keeps; raises TenantQuotaError, and is none then."""
    with changing(engine, tenant, on_change) as (connection, change):
        before = quotas.before(connection, tenant)
        yield connection, change
        quotas.check(connection, tenant, before)


def _advice(kind: QuotaKind, more: int) -> str:
    return f"this would be {more:,} more: {_ADVICE[kind]}, or ask the operator for more"


def stored_use(engine: Engine, tenant: TenantId) -> StoredUse:
    """What a tenant keeps, in a transaction of its own."""
    with reading(engine) as connection:
        return use_of(connection, tenant)
