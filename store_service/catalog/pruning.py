"""Retention over the catalog: versions that go by their adapters' policies, and the weights that they leave."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import Connection, Engine, delete, exists, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from hotslot.errors import HotslotError
from hotslot.ids import AdapterName, Digest, TenantId
from hotslot.references import Reference, split_owner
from store_service.catalog import reads, writes
from store_service.catalog.changes import OnChange, changing
from store_service.catalog.database import reading, writing
from store_service.catalog.policies import policy_of
from store_service.catalog.records import Resolution
from store_service.catalog.retention import NO_RETENTION, Pruning, RetentionPolicy, StoredVersion, choose_removed
from store_service.catalog.tables import released_weights, tags, versions

log = structlog.get_logger(__name__)

MAX_REMOVED = 10_000
"""Most versions that one look at an adapter removes."""
MAX_RELEASED = 1_000
"""Blobs that one pass looks at."""


@dataclass(frozen=True, slots=True)
class ReleasedWeights:
    """Weights of a version that retention removed."""

    tenant: TenantId
    digest: Digest


@dataclass(frozen=True, slots=True)
class PrunedVersions:
    """Versions of one adapter that its retention does not keep."""

    tenant: TenantId
    name: AdapterName
    removed: tuple[StoredVersion, ...]


class VersionRetention:
    """Retention of all tenants' adapters. Every public method is one transaction, and blocks."""

    def __init__(
        self,
        engine: Engine,
        on_change: OnChange = lambda tenant: None,
        *,
        grace_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`grace_s` is the least time for which a version stays after it lost its last tag or was asked for.

        While the store was away nobody could ask for one, so everything stays for that long from now, whoever prunes.
        """
        self.grace_s = grace_s
        self._heard_since_s = clock()
        self._engine = engine
        self._on_change = on_change
        self._clock = clock

    def prune(self, tenant: TenantId, name: AdapterName, bounds: RetentionPolicy | None = None) -> Pruning:
        """Remove what an adapter's policy, or these bounds in its place, do not keep. Raises AdapterNotFoundError.

        The weights of removed versions are noted as released in the same transaction.
        """
        seen = self.look(tenant, name, bounds)
        if not seen.removed:
            # Most looks find nothing, and a turn at the tenant's changes would hold up publications.
            return seen
        with changing(self._engine, tenant, self._on_change) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            found = self._decided(connection, tenant, name, bounds)
            for version in found.removed:
                writes.remove_version(
                    connection, change, adapter, reads.version_row(connection, adapter, version.digest)
                )
                self._release(connection, tenant, version.weights_digest)
            return replace(found, revision=change.revision)

    def look(self, tenant: TenantId, name: AdapterName, bounds: RetentionPolicy | None = None) -> Pruning:
        """Decide as `prune`, and remove nothing."""
        with reading(self._engine) as connection:
            return self._decided(connection, tenant, name, bounds)

    def note_use(self, tenant: TenantId, name: AdapterName, digest: Digest) -> None:
        """Note that a version was asked for by its digest; again soon changes nothing."""
        with reading(self._engine) as connection:
            adapter = reads.live_adapter(connection, tenant, name)
            row = reads.version_row(connection, adapter, digest)
        now_s = self._clock()
        if now_s - row.use_time_s >= self.grace_s / 4:
            with writing(self._engine) as connection:
                writes.note_use(connection, row.id, now_s)

    def note_resolved(self, tenant: TenantId, reference: Reference, found: Resolution) -> None:
        """Note that a reference was resolved, where retention goes by it: one with a digest, of a version without tags.

        An adapter without a retention may get one at any moment, from a call that prunes or from the next publication.
        What cannot be noted is no reason to refuse an answer.
        """
        if reference.digest is None or found.version.tags:
            return
        try:
            owner, name = split_owner(reference.name)
            self.note_use(owner or tenant, name, reference.digest)
        except HotslotError as exc:
            log.warning("use_not_noted", tenant=tenant, adapter=reference.name, why=exc.message)

    def released(self, limit: int | None = MAX_RELEASED) -> list[ReleasedWeights]:
        """Weights that removed versions left, the oldest first."""
        query = select(released_weights).order_by(released_weights.c.time_s).limit(limit)
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [ReleasedWeights(TenantId(row.tenant), Digest(row.weights_digest)) for row in rows]

    def settle(self, weights: Iterable[ReleasedWeights]) -> None:
        """Forget released weights: their blobs are gone, or versions have them again."""
        keys = [(each.tenant, each.digest) for each in weights]
        columns = tuple_(released_weights.c.tenant, released_weights.c.weights_digest)
        with writing(self._engine) as connection:
            connection.execute(delete(released_weights).where(columns.in_(keys)))

    def _decided(
        self, connection: Connection, tenant: TenantId, name: AdapterName, bounds: RetentionPolicy | None
    ) -> Pruning:
        adapter = reads.live_adapter(connection, tenant, name)
        record = policy_of(connection, adapter)
        policy = bounds or (record.retention if record is not None else NO_RETENTION)
        if not policy.removes:
            num_versions = connection.execute(
                select(func.count()).select_from(versions).where(versions.c.adapter_id == adapter.id)
            ).scalar_one()
            return Pruning((), 0, num_versions)
        is_tagged = exists().where(tags.c.version_id == versions.c.id)
        query = (
            select(*reads.SUMMARY_COLUMNS, is_tagged.label("is_tagged"))
            .where(versions.c.adapter_id == adapter.id)
            .order_by(versions.c.id.desc())
        )
        rows = (reads.checked_version(adapter, row) for row in connection.execute(query))
        newest_first = (
            StoredVersion(
                Digest(row.digest),
                Digest(row.weights_digest),
                row.weights_size_bytes,
                row.create_time_s,
                row.use_time_s,
                bool(row.is_tagged),
            )
            for row in rows
        )
        found = choose_removed(
            newest_first,
            policy,
            now_s=self._clock(),
            grace_s=self.grace_s,
            heard_since_s=self._heard_since_s,
        )
        return replace(found, removed=found.removed[:MAX_REMOVED], more=len(found.removed) > MAX_REMOVED)

    def _release(self, connection: Connection, tenant: TenantId, digest: Digest) -> None:
        make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = {"tenant": tenant, "weights_digest": digest, "time_s": self._clock()}
        connection.execute(make(released_weights).values(row).on_conflict_do_nothing())
