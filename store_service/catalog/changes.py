"""A tenant's changes: each at the next revision, written in the transaction that makes it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hotslot.contract.catalog import AdapterEventKind
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from store_service.catalog import checksums
from store_service.catalog.database import writing
from store_service.catalog.tables import adapters, events, tenants

KEPT_EVENTS = 100_000
"""Number of a tenant's last events that can be watched from."""
TRIM_EVERY = 1_000

OnChange = Callable[[TenantId], None]
"""Hears that a tenant's adapters changed, once that is durable."""


@contextmanager
def changing(engine: Engine, tenant: TenantId, on_change: OnChange) -> "Iterator[tuple[Connection, Change]]":
    """A tenant's turn at changing its adapters, announced once it is durable."""
    with writing(engine) as connection:
        yield connection, Change(connection, tenant)
    on_change(tenant)


class Change:
    """One writer's turn at a tenant's adapters: begins by taking the tenant's row."""

    def __init__(self, connection: Connection, tenant: TenantId) -> None:
        self._connection = connection
        self._tenant = tenant
        self.time_s = time.time()
        """Time of this change."""
        make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = {"name": tenant, "revision": 0, "oldest_revision": 0}
        connection.execute(make(tenants).values(row).on_conflict_do_nothing())
        self._revision: int = connection.execute(
            select(tenants.c.revision).where(tenants.c.name == tenant).with_for_update()
        ).scalar_one()

    @property
    def revision(self) -> int:
        """Revision of the tenant's catalog with all that this change wrote so far."""
        return self._revision

    def add_event(
        self, kind: AdapterEventKind, adapter_id: int, name: AdapterName, tag: TagName | None, digest: Digest | None
    ) -> int:
        """Write down what happened to an adapter; returns its revision, which becomes the adapter's."""
        self._revision += 1
        values = {
            "tenant": self._tenant,
            "revision": self._revision,
            "kind": kind.value,
            "adapter": name,
            "tag": tag,
            "digest": digest,
            "time_s": self.time_s,
        }
        checksum = checksums.event_checksum(SimpleNamespace(**values))
        self._connection.execute(insert(events).values(**values, checksum=checksum))
        self._connection.execute(update(tenants).where(tenants.c.name == self._tenant).values(revision=self._revision))
        self._connection.execute(
            update(adapters)
            .where(adapters.c.id == adapter_id)
            .values(revision=self._revision, update_time_s=self.time_s)
        )
        if self._revision % TRIM_EVERY == 0:
            self._trim()
        return self._revision

    def _trim(self) -> None:
        oldest = self._revision - KEPT_EVENTS
        if oldest > 0:
            self._connection.execute(delete(events).where(events.c.tenant == self._tenant, events.c.revision <= oldest))
            self._connection.execute(
                update(tenants).where(tenants.c.name == self._tenant).values(oldest_revision=oldest)
            )
