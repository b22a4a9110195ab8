"""Quotas of what a tenant keeps: counted in the transaction that changes it, in the tenant's turn.

So publications at the same time, through several stores, never exceed a quota together. Each blob of weights counts for
a tenant once, and in full, whoever else has the same bytes. Deleted adapters that can be undeleted count for nothing
but a second bound on bytes: as much again as the quota, so that deleting frees room and cannot fill the disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, case, func, select

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import TenantQuotaError
from hotslot.ids import TenantId
from shared.quotas.limits import TenantLimits
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
    """Count, in one pass over its versions, as much as a tenant keeps now."""
    is_live = adapters.c.delete_time_s.is_(None)
    num_adapters = select(func.count()).select_from(adapters).where(adapters.c.tenant == tenant, is_live)
    each = (
        select(
            func.max(versions.c.weights_size_bytes).label("size"),
            func.sum(case((is_live, 1), else_=0)).label("num_live"),
        )
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .where(adapters.c.tenant == tenant)
        .group_by(versions.c.weights_digest)
        .subquery()
    )
    live_size = case((each.c.num_live > 0, each.c.size), else_=0)
    sums = (func.coalesce(func.sum(column), 0) for column in (each.c.num_live, live_size, each.c.size))
    num_versions, live_bytes, all_bytes = (int(found) for found in connection.execute(select(*sums)).one())
    counts = {
        QuotaKind.ADAPTERS: int(connection.execute(num_adapters).scalar_one()),
        QuotaKind.VERSIONS: num_versions,
        QuotaKind.BYTES: live_bytes,
    }
    return StoredUse(counts, all_bytes)


def stored_use(engine: Engine, tenant: TenantId) -> StoredUse:
    """Count as `use_of`, in a transaction of its own."""
    with reading(engine) as connection:
        return use_of(connection, tenant)


class StoredQuotas:
    """Quotas of what the catalog has. Everything here blocks."""

    def __init__(self, limits: TenantLimits) -> None:
        self._limits = limits

    def check(self, connection: Connection, engine: Engine, tenant: TenantId) -> None:
        """Raise TenantQuotaError where a change, in its transaction, grew something beyond its limit.

        Use before the change is what other transactions still see, since the tenant's turn is this one's; mostly
        nothing is beyond a limit, and it is not asked for.
        """
        limits = self._limits.of(tenant)
        if not any(kind in limits for kind in STORED):
            return
        after = use_of(connection, tenant)
        most_bytes = 2 * limits.get(QuotaKind.BYTES, after.with_deleted_bytes)
        is_within = all(after.counts[kind] <= limits.get(kind, after.counts[kind]) for kind in STORED)
        if is_within and after.with_deleted_bytes <= most_bytes:
            return
        before = stored_use(engine, tenant)
        for kind in STORED:
            limit, used = limits.get(kind), before.counts[kind]
            if limit is not None and after.counts[kind] > max(limit, used):
                raise TenantQuotaError(tenant, kind.value, limit, used, advice=_advice(kind, after.counts[kind] - used))
        if after.with_deleted_bytes > max(most_bytes, before.with_deleted_bytes):
            limit, used = limits[QuotaKind.BYTES], before.counts[QuotaKind.BYTES]
            deleted = before.with_deleted_bytes - used
            advice = f"{deleted:,} bytes more are kept of deleted adapters until they cannot be undeleted any more"
            raise TenantQuotaError(tenant, QuotaKind.BYTES.value, limit, used, advice=advice)


NO_QUOTAS = StoredQuotas(TenantLimits())


@contextmanager
def growing(
    engine: Engine, on_change: OnChange, quotas: StoredQuotas, tenant: TenantId
) -> Iterator[tuple[Connection, Change]]:
    """A change that may grow what a tenant keeps; raises TenantQuotaError, and is none then."""
    with changing(engine, tenant, on_change) as (connection, change):
        yield connection, change
        quotas.check(connection, engine, tenant)


def _advice(kind: QuotaKind, more: int) -> str:
    return f"this would be {more:,} more: {_ADVICE[kind]}, or ask the operator for more"
