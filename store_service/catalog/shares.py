"""Shares of adapters: which tenants may read and use one besides its owner."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, insert, select, tuple_

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import QuotaExceededError
from hotslot.formats.principals import EVERY_TENANT
from hotslot.ids import AdapterName, TenantId
from hotslot.references import shared_name
from store_service.catalog import access, checksums, reads
from store_service.catalog.changes import Change, OnChange, changing
from store_service.catalog.database import reading
from store_service.catalog.records import AdapterRecord, ShareRecord
from store_service.catalog.tables import adapter_shares, adapters

MAX_SHARES = 1000
"""Tenants that one adapter is shared with by name."""


class Shares:
    """Shares over a SQLAlchemy engine."""

    def __init__(self, engine: Engine, on_change: OnChange = lambda tenant: None) -> None:
        self._engine = engine
        self._on_change = on_change

    def share(self, tenant: TenantId, name: AdapterName, others: Collection[str]) -> ShareRecord:
        """Share an adapter with tenants, or with EVERY_TENANT; one that has it already keeps it.

        Raises AdapterNotFoundError, and QuotaExceededError for more than MAX_SHARES.
        """
        with changing(self._engine, tenant, self._on_change) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            there = {row.share_tenant for row in _shares_of(connection, [adapter])[adapter.id]}
            new = sorted(set(others) - there - {tenant})
            if len(there) + len(new) > MAX_SHARES:
                message = f"{name} would be shared with {len(there) + len(new)} tenants, at most {MAX_SHARES} are kept"
                raise QuotaExceededError(f"{message}; share it with all", subject="shares")
            for other in new:
                checksum = checksums.share_checksum(adapter, other, change.time_s)
                values = {"adapter_id": adapter.id, "tenant": other, "time_s": change.time_s, "checksum": checksum}
                connection.execute(insert(adapter_shares).values(values))
            return _told(connection, change, adapter, AdapterEventKind.ADAPTER_SHARED if new else None)

    def unshare(self, tenant: TenantId, name: AdapterName, others: Collection[str]) -> ShareRecord:
        """End the shares with tenants, or with EVERY_TENANT, which leaves those by name; all where none is named.

        Raises AdapterNotFoundError.
        """
        with changing(self._engine, tenant, self._on_change) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            ending = delete(adapter_shares).where(adapter_shares.c.adapter_id == adapter.id)
            if others:
                ending = ending.where(adapter_shares.c.tenant.in_(others))
            is_changed = bool(connection.execute(ending).rowcount)
            return _told(connection, change, adapter, AdapterEventKind.ADAPTER_UNSHARED if is_changed else None)

    def of_tenant(self, tenant: TenantId, *, limit: int, after: str) -> list[ShareRecord]:
        """Shares of a tenant's adapters, by name; `after` is the last adapter known, empty for the beginning."""
        shared = select(adapter_shares.c.adapter_id)
        query = (
            select(adapters)
            .where(adapters.c.tenant == tenant, adapters.c.delete_time_s.is_(None), adapters.c.name > after)
            .where(adapters.c.id.in_(shared))
            .order_by(adapters.c.name)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            rows = [reads.checked_adapter(row) for row in connection.execute(query).all()]
            found = _shares_of(connection, rows)
            return [_record(row, found[row.id]) for row in rows]

    def shared_with(self, tenant: TenantId, *, limit: int, after: tuple[str, str]) -> list[AdapterRecord]:
        """Adapters that others share with a tenant, as it names them, by owner and name; `after` is the last known."""
        shared = select(adapter_shares.c.adapter_id).where(adapter_shares.c.tenant.in_((tenant, EVERY_TENANT)))
        query = (
            select(adapters)
            .where(adapters.c.id.in_(shared), adapters.c.tenant != tenant, adapters.c.delete_time_s.is_(None))
            .where(tuple_(adapters.c.tenant, adapters.c.name) > tuple_(*after))
            .order_by(adapters.c.tenant, adapters.c.name)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
            _shares_of(connection, rows)
            records = reads.adapter_records(connection, rows)
            names = [shared_name(TenantId(row.tenant), AdapterName(row.name)) for row in rows]
            return [access.as_named(record, name) for record, name in zip(records, names, strict=True)]


def _told(connection: Connection, change: Change, adapter: Row[Any], kind: AdapterEventKind | None) -> ShareRecord:
    """The shares as they are now; a change of them is an event."""
    if kind is not None:
        change.add_event(kind, adapter.id, adapter.name, None, None)
    record = _record(adapter, _shares_of(connection, [adapter])[adapter.id])
    return replace(record, revision=change.revision)


def _shares_of(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, list[Any]]:
    """Shares of adapters' rows, by the adapter's id; raises CatalogDamagedError for one that was not written so."""
    adapter_of = {row.id: row for row in rows}
    found: dict[int, list[Any]] = {row.id: [] for row in rows}
    of = adapter_shares.c.adapter_id
    query = select(of, *access.SHARE_COLUMNS).where(of.in_(adapter_of)).order_by(adapter_shares.c.tenant)
    for row in connection.execute(query):
        access.check_share(adapter_of[row.adapter_id], row)
        found[row.adapter_id].append(row)
    return found


def _record(adapter: Row[Any], shares: Sequence[Any]) -> ShareRecord:
    return ShareRecord(
        AdapterName(adapter.name),
        tuple(row.share_tenant for row in shares if row.share_tenant != EVERY_TENANT),
        any(row.share_tenant == EVERY_TENANT for row in shares),
        max((row.share_time_s for row in shares), default=None),
    )
