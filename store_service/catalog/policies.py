"""Policies of adapters: on how many workers they should be, and whether these keep them."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, delete, insert, select, tuple_

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import EtagMismatchError, PolicyNotFoundError
from hotslot.ids import AdapterName, Digest, TenantId
from hotslot.references import DEFAULT_TAG
from shared.fleet.replica_policy import ReplicaPolicy
from store_service.catalog import checksums, reads
from store_service.catalog.changes import OnChange, changing
from store_service.catalog.database import reading
from store_service.catalog.records import PinnedRecord, PolicyRecord
from store_service.catalog.tables import adapter_policies, adapters, tags, versions

# Put together once, as every resolve asks it.
_POLICIES = select(adapter_policies).where(adapter_policies.c.adapter_id.in_(bindparam("adapter_ids", expanding=True)))


class Policies:
    """Policies over a SQLAlchemy engine."""

    def __init__(self, engine: Engine, on_change: OnChange = lambda tenant: None) -> None:
        self._engine = engine
        self._on_change = on_change

    def set(self, tenant: TenantId, name: AdapterName, policy: ReplicaPolicy, *, etag: str) -> PolicyRecord:
        """Raises AdapterNotFoundError, EtagMismatchError."""
        with changing(self._engine, tenant, self._on_change) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            current = policy_of(connection, adapter)
            _check_etag(name, current, etag)
            if current is not None and current.policy == policy:
                return replace(current, revision=change.revision)
            values = {
                "adapter_id": adapter.id,
                "min_replicas": policy.min_replicas,
                "max_replicas": policy.max_replicas,
                "pinned": policy.pinned,
                "revision": change.add_event(AdapterEventKind.POLICY_CHANGED, adapter.id, name, None, None),
                "update_time_s": change.time_s,
            }
            checksum = checksums.policy_checksum(adapter, SimpleNamespace(**values))
            connection.execute(delete(adapter_policies).where(adapter_policies.c.adapter_id == adapter.id))
            connection.execute(insert(adapter_policies).values(**values, checksum=checksum))
            return replace(_required(name, policy_of(connection, adapter)), revision=change.revision)

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
    checksums.check(row.checksum, checksums.policy_checksum(adapter, row), f"the policy of adapter {adapter.name!r}")
    policy = ReplicaPolicy(row.min_replicas, row.max_replicas, row.pinned)
    return PolicyRecord(AdapterName(adapter.name), policy, reads.etag_of(row.revision), row.update_time_s)


def _required(name: AdapterName, found: PolicyRecord | None) -> PolicyRecord:
    if found is None:
        raise PolicyNotFoundError(name)
    return found


def _check_etag(name: AdapterName, current: PolicyRecord | None, expected: str) -> None:
    found = current.etag if current is not None else ""
    if expected and expected != found:
        raise EtagMismatchError(f"the policy of adapter {name}", found, expected)
