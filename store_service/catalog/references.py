"""References of versions to weights blobs: of all versions, of some blobs, and those that ended lately.

A look at all versions verifies each row, and takes as long as there are versions. So passes of collection ask by index
about the blobs that a removed version left (`dropped_weights`), and look at all only now and then. That
table is appended to alone, so that removals of different tenants never wait for each other.
"""

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, delete, exists, func, insert, literal, select

from hotslot.batches import batches
from hotslot.ids import AdapterName, Digest, TenantId
from store_service.catalog import reads
from store_service.catalog.clock import now_unix_s
from store_service.catalog.database import reading, writing
from store_service.catalog.records import PINNED_LABEL, WeightsUse
from store_service.catalog.tables import adapters, dropped_weights, labels, versions

BATCH_ROWS = 5_000
"""Versions of one query of a look at all of them."""
BATCH_KEYS = 400
"""Blobs of one query."""
MOST_PURGED = 500
"""Adapters that one transaction removes."""
KEPT_S = 3 * 86400.0
"""Time for which it is remembered that a version of a blob was removed: longer than between two looks at all."""
LATE_S = 600.0
"""Longest transaction: a row may become visible so long after the time that stands in it."""

_Key: TypeAlias = tuple[TenantId, Digest]


@dataclass(frozen=True, slots=True)
class ExpiredAdapter:
    """Deleted adapter whose grace is over."""

    id: int
    tenant: TenantId
    name: AdapterName
    purge_time_s: float
    num_versions: int
    size_bytes: int
    """Bytes of its versions' weights."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Blobs that removed versions left."""

    keys: frozenset[_Key]
    until_s: float
    """Time to ask from the next time, by the catalog's clock."""


@dataclass(frozen=True, slots=True)
class Departed:
    """Rows that a plan takes for removed though they are there."""

    adapters: frozenset[int] = frozenset()
    versions: frozenset[tuple[TenantId, AdapterName, Digest]] = frozenset()
    """Those of live adapters; a deleted one, which may come back, can have had the same name."""

    def has(self, row: Any) -> bool:
        """Tell if a version's row, with its adapter's tenant, name and time of deletion, is among them."""
        if not self.adapters and not self.versions:
            return False
        found = (row.tenant, row.name, row.digest)
        return row.adapter_id in self.adapters or (row.delete_time_s is None and found in self.versions)


NONE_DEPARTED = Departed()


class WeightsReferences:
    """Every method is a transaction or several, blocks, and may raise StoreUnavailableError and CatalogDamagedError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def all(self, departed: Departed = NONE_DEPARTED) -> set[_Key]:
        """The weights blobs of all versions, deleted adapters' included; every row is verified.

        A version that is published meanwhile may be missing: whoever removes its blob asks again, in one transaction.
        """
        found: set[_Key] = set()
        last = 0
        while True:
            query = _USES.where(versions.c.id > last).order_by(versions.c.id).limit(BATCH_ROWS)
            with reading(self._engine) as connection:
                rows = connection.execute(query).all()
            for row in rows:
                reads.checked_version(row, row)
                if not departed.has(row):
                    found.add((TenantId(row.tenant), Digest(row.weights_digest)))
            if len(rows) < BATCH_ROWS:
                return found
            last = rows[-1].id

    def among(self, keys: Iterable[_Key], departed: Departed = NONE_DEPARTED) -> set[_Key]:
        """Those of the blobs that a version refers to; the rows that are looked at are verified."""
        return {
            (TenantId(row.tenant), Digest(row.weights_digest))
            for row in self._rows_of(_USES, keys)
            if not departed.has(reads.checked_version(row, row))
        }

    def uses_among(self, keys: Collection[_Key]) -> list[WeightsUse]:
        """All versions of some blobs, newest first, with what their adapters say of keeping them."""
        key, value = PINNED_LABEL
        is_pinned = exists().where(labels.c.adapter_id == adapters.c.id, labels.c.key == key, labels.c.value == value)
        query = _USES.add_columns(is_pinned.label("is_pinned")).order_by(versions.c.id.desc())
        return [reads.weights_use(row) for row in self._rows_of(query, keys)]

    def _rows_of(self, query: Select[Any], keys: Iterable[_Key]) -> Iterator[Row[Any]]:
        wanted = set(keys)
        # Not by tenant too: without statistics SQLite would go through all adapters of the tenant.
        for some in batches({digest for _, digest in wanted}, BATCH_KEYS):
            with reading(self._engine) as connection:
                rows = connection.execute(query.where(versions.c.weights_digest.in_(some))).all()
            yield from (row for row in rows if (row.tenant, row.weights_digest) in wanted)

    def dropped_since(self, time_s: float) -> Dropped:
        """Blobs of versions that were removed since a time; some may be referred to by other versions, or again."""
        is_new = dropped_weights.c.time_s >= time_s - LATE_S
        query = select(dropped_weights.c.tenant, dropped_weights.c.weights_digest).where(is_new).distinct()
        with reading(self._engine) as connection:
            now_s = now_unix_s(connection)
            rows = connection.execute(query).all()
        return Dropped(frozenset((TenantId(row.tenant), Digest(row.weights_digest)) for row in rows), now_s)

    def now_s(self) -> float:
        """Time of the catalog's clock."""
        with reading(self._engine) as connection:
            return now_unix_s(connection)

    def forget_dropped(self) -> None:
        """Forget what every store has looked at by now."""
        with writing(self._engine) as connection:
            before_s = now_unix_s(connection) - KEPT_S
            connection.execute(delete(dropped_weights).where(dropped_weights.c.time_s < before_s))

    def expired(self) -> list[ExpiredAdapter]:
        """Deleted adapters whose grace is over, by their ids."""
        has = versions.c.adapter_id == adapters.c.id
        num, size = select(func.count()).where(has), select(func.coalesce(func.sum(versions.c.weights_size_bytes), 0))
        query = select(
            adapters, num.scalar_subquery().label("num"), size.where(has).scalar_subquery().label("size_bytes")
        )
        with reading(self._engine) as connection:
            # Sorted here: for an order by id SQLite looks at every adapter.
            rows = connection.execute(query.where(_is_over())).all()
        return [
            ExpiredAdapter(
                row.id, TenantId(row.tenant), AdapterName(row.name), row.purge_time_s, row.num, int(row.size_bytes)
            )
            for row in sorted(map(reads.checked_adapter, rows), key=lambda row: row.id)
        ]


def by_tenant(keys: Iterable[_Key]) -> Iterator[tuple[TenantId, tuple[Digest, ...]]]:
    """Blobs in parts that one query takes, of one tenant each: no database finds pairs of columns by an index."""
    found: dict[TenantId, list[Digest]] = {}
    for tenant, digest in keys:
        found.setdefault(tenant, []).append(digest)
    return ((tenant, some) for tenant, digests in found.items() for some in batches(digests, BATCH_KEYS))


def purge_expired(engine: Engine) -> int:
    """Remove for good what was deleted longer ago than its grace; returns how many adapters went."""
    num_gone = 0
    while True:
        with writing(engine) as connection:
            rows = connection.execute(
                select(adapters).where(_is_over()).order_by(adapters.c.purge_time_s).limit(MOST_PURGED)
            ).all()
            gone = [reads.checked_adapter(row).id for row in rows]
            # Another store, whose clock is behind, may bring one back in between: the time is looked at again.
            owned = select(adapters.c.tenant, versions.c.weights_digest, literal(now_unix_s(connection)))
            owned = owned.join(adapters, adapters.c.id == versions.c.adapter_id)
            columns = ["tenant", "weights_digest", "time_s"]
            left = owned.where(adapters.c.id.in_(gone), _is_over()).distinct()
            connection.execute(insert(dropped_weights).from_select(columns, left))
            num_gone += connection.execute(delete(adapters).where(adapters.c.id.in_(gone), _is_over())).rowcount
        if len(rows) < MOST_PURGED:
            return num_gone


def note_dropped(connection: Connection, tenant: TenantId, digest: Digest) -> None:
    """Note, in the transaction that removes a version, that its blob may have no other."""
    values = {"tenant": tenant, "weights_digest": digest, "time_s": now_unix_s(connection)}
    connection.execute(insert(dropped_weights).values(**values))


def _is_over() -> ColumnElement[bool]:
    return adapters.c.purge_time_s <= time.time()


_USES = select(*reads.SUMMARY_COLUMNS, adapters.c.tenant, adapters.c.name, adapters.c.delete_time_s).join(
    adapters, adapters.c.id == versions.c.adapter_id
)
