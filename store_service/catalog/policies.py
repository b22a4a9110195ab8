"""Policies of adapters: on how many workers they should be, and whether these keep them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, delete, insert, or_, select, tuple_

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import EtagMismatchError, PolicyNotFoundError
from hotslot.ids import AdapterName, Digest, TenantId
from hotslot.references import DEFAULT_TAG
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy
from store_service.catalog import checksums, reads
from store_service.catalog.changes import Change, OnChange, changing
from store_service.catalog.database import reading
from store_service.catalog.records import PinnedRecord, PolicyRecord
from store_service.catalog.retention import NO_RETENTION, RetentionPolicy
from store_service.catalog.tables import adapter_policies, adapters, tags, versions

# Put together once, as every resolve asks it.
_POLICIES = select(adapter_policies).where(adapter_policies.c.adapter_id.in_(bindparam("adapter_ids", expanding=True)))


class Policies:
    """Policies over a SQLAlchemy engine."""

    def __init__(self, engine: Engine, on_change: OnChange = lambda tenant: None) -> None:
        self._engine = engine
        self._on_change = on_change

    def set(
        self,
        tenant: TenantId,
        name: AdapterName,
        policy: ReplicaPolicy,
        *,
        etag: str,
        retention: Callable[[RetentionPolicy], RetentionPolicy] = lambda before: before,
    ) -> PolicyRecord:
        """Set a policy; `retention` makes the new one of that before.

        Raises AdapterNotFoundError, EtagMismatchError.
        """
        with changing(self._engine, tenant, self._on_change) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            current = policy_of(connection, adapter)
            _check_etag(name, current, etag)
            before = current.retention if current is not None else NO_RETENTION
            write_policy(connection, change, adapter, policy, retention(before))
            return replace(_required(name, policy_of(connection, adapter)), revision=change.revision)

    def with_retention(self, tenant: TenantId | None = None) -> list[tuple[TenantId, AdapterName]]:
        """Adapters of one tenant, or of all, whose policies have a retention, by tenant and name."""
        query = (
            select(adapters)
            .join(adapter_policies, adapter_policies.c.adapter_id == adapters.c.id)
            .where(
                adapters.c.delete_time_s.is_(None),
                or_(adapter_policies.c.keep_versions > 0, adapter_policies.c.untagged_ttl_s.is_not(None)),
            )
            .order_by(adapters.c.tenant, adapters.c.name)
        )
        if tenant is not None:
            query = query.where(adapters.c.tenant == tenant)
        with reading(self._engine) as connection:
            rows = [reads.checked_adapter(row) for row in connection.execute(query).all()]
            return [(TenantId(row.tenant), AdapterName(row.name)) for row in rows]

    def get(self, tenant: TenantId, name: AdapterName) -> PolicyRecord:
        """Raises AdapterNotFoundError, PolicyNotFoundError."""
        with reading(self._engine) as connection:
            return _required(name, policy_of(connection, reads.live_adapter(connection, tenant, name)))

    def delete(self, tenant: TenantId, name: AdapterName, *, etag: str) -> int:
        """Returns the revision. Raises AdapterNotFoundError, PolicyNotFoundError, EtagMismatchError."""
        with changing(self._engine, tenant, self._on_change) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            _check_etag(name, _required(name, policy_of(connection, adapter)), etag)
            connection.execute(delete(adapter_policies).where(adapter_policies.c.adapter_id == adapter.id))
            return change.add_event(AdapterEventKind.POLICY_CHANGED, adapter.id, name, None, None)

    def of_tenant(self, tenant: TenantId, *, limit: int, after: str) -> list[PolicyRecord]:
        """By adapter; `after` is the last adapter known, empty for the beginning."""
        query = (
            select(adapters)
            .join(adapter_policies, adapter_policies.c.adapter_id == adapters.c.id)
            .where(adapters.c.tenant == tenant, adapters.c.delete_time_s.is_(None), adapters.c.name > after)
            .order_by(adapters.c.name)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            rows = [reads.checked_adapter(row) for row in connection.execute(query).all()]
            found = policies_of(connection, rows)
            return [found[row.id] for row in rows]

    def pinned_for(self, base_model_digest: str, *, limit: int, after: tuple[str, str]) -> list[PinnedRecord]:
        """Pinned versions of all tenants, by tenant and adapter; `after` are those of the last one known."""
        query = (
            select(adapters)
            .join(adapter_policies, adapter_policies.c.adapter_id == adapters.c.id)
            .join(tags, tags.c.adapter_id == adapters.c.id)
            .join(versions, versions.c.id == tags.c.version_id)
            .where(
                adapter_policies.c.pinned.is_(True),
                adapters.c.delete_time_s.is_(None),
                tags.c.name == DEFAULT_TAG,
                versions.c.base_model_digest == base_model_digest,
                tuple_(adapters.c.tenant, adapters.c.name) > tuple_(*after),
            )
            .order_by(adapters.c.tenant, adapters.c.name)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            rows = [reads.checked_adapter(row) for row in connection.execute(query).all()]
            found = policies_of(connection, rows)
            digests = _latest_digests(connection, rows)
            return [PinnedRecord(TenantId(row.tenant), digests[row.id], found[row.id]) for row in rows]


def write_policy(
    connection: Connection, change: Change, adapter: Row[Any], policy: ReplicaPolicy, retention: RetentionPolicy
) -> None:
    """Set an adapter's policy within a change; what is set already changes nothing."""
    current = policy_of(connection, adapter)
    if current is not None and (current.policy, current.retention) == (policy, retention):
        return
    values = {
        "adapter_id": adapter.id,
        "min_replicas": policy.min_replicas,
        "max_replicas": policy.max_replicas,
        "pinned": policy.pinned,
        "keep_versions": retention.keep_versions,
        "untagged_ttl_s": retention.untagged_ttl_s,
        "revision": change.add_event(AdapterEventKind.POLICY_CHANGED, adapter.id, adapter.name, None, None),
        "update_time_s": change.time_s,
    }
    row = SimpleNamespace(**values)
    connection.execute(delete(adapter_policies).where(adapter_policies.c.adapter_id == adapter.id))
    connection.execute(
        insert(adapter_policies).values(
            **values,
            checksum=checksums.policy_checksum(adapter, row),
            retention_checksum=checksums.retention_checksum(adapter, row),
        )
    )


def keep_versions(connection: Connection, change: Change, adapter: Row[Any], number: int) -> None:
    """Set how many versions an adapter keeps, and leave the rest of its policy as it is."""
    current = policy_of(connection, adapter)
    policy, retention = (
        (current.policy, current.retention) if current is not None else (DEFAULT_REPLICA_POLICY, NO_RETENTION)
    )
    if retention.keep_versions != number:
        write_policy(connection, change, adapter, policy, replace(retention, keep_versions=number))


def policy_of(connection: Connection, adapter: Row[Any]) -> PolicyRecord | None:
    """The policy of a checked adapter's row, if it has one."""
    return policies_of(connection, [adapter]).get(adapter.id)


def policies_of(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, PolicyRecord]:
    """The policies of checked adapters' rows by the adapter's id."""
    adapter_of = {row.id: row for row in rows}
    found = connection.execute(_POLICIES, {"adapter_ids": list(adapter_of)})
    return {row.adapter_id: _record(adapter_of[row.adapter_id], row) for row in found}


def _latest_digests(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, Digest]:
    """Digests that the default tag points at, by the id of the checked adapter's row."""
    adapter_of = {row.id: row for row in rows}
    query = (
        select(tags, versions.c.digest.label("version_digest"))
        .join(versions, versions.c.id == tags.c.version_id)
        .where(tags.c.adapter_id.in_(adapter_of), tags.c.name == DEFAULT_TAG)
    )
    checked = [
        reads.checked_tag(adapter_of[row.adapter_id], row, row.version_digest) for row in connection.execute(query)
    ]
    return {row.adapter_id: Digest(row.version_digest) for row in checked}


def _record(adapter: Row[Any], row: Row[Any]) -> PolicyRecord:
    what = f"the policy of adapter {adapter.name!r}"
    checksums.check(row.checksum, checksums.policy_checksum(adapter, row), what)
    checksums.check(row.retention_checksum, checksums.retention_checksum(adapter, row), what)
    policy = ReplicaPolicy(row.min_replicas, row.max_replicas, row.pinned)
    retention = RetentionPolicy(row.keep_versions, row.untagged_ttl_s)
    return PolicyRecord(AdapterName(adapter.name), policy, reads.etag_of(row.revision), row.update_time_s, retention)


def _required(name: AdapterName, found: PolicyRecord | None) -> PolicyRecord:
    if found is None:
        raise PolicyNotFoundError(name)
    return found


def _check_etag(name: AdapterName, current: PolicyRecord | None, expected: str) -> None:
    found = current.etag if current is not None else ""
    if expected and expected != found:
        raise EtagMismatchError(f"the policy of adapter {name}", found, expected)
