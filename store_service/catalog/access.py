"""Adapters that a tenant may read: its own, and those that their owners share with it.

One query tells that an adapter is there and may be read, so that one which may not is as if it were not there. Changes
go by `reads.live_adapter`, which finds the tenant's own alone.
"""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, or_, select

from hotslot.errors import AdapterNotFoundError
from hotslot.formats.principals import EVERY_TENANT
from hotslot.ids import AdapterName, Digest, TenantId
from hotslot.references import split_owner
from store_service.catalog import checksums, reads
from store_service.catalog.records import AdapterRecord
from store_service.catalog.tables import adapter_shares, adapters, versions

SHARE_COLUMNS = (
    adapter_shares.c.tenant.label("share_tenant"),
    adapter_shares.c.time_s.label("share_time_s"),
    adapter_shares.c.checksum.label("share_checksum"),
)
"""A share beside its adapter, whose columns have the same names."""

_IS_SHARED = adapter_shares.c.tenant.in_((bindparam("tenant"), EVERY_TENANT))
_SHARED_ADAPTER = (
    select(adapters, *SHARE_COLUMNS)
    .join(adapter_shares, adapter_shares.c.adapter_id == adapters.c.id)
    .where(
        adapters.c.tenant == bindparam("owner"),
        adapters.c.name == bindparam("name"),
        adapters.c.delete_time_s.is_(None),
        _IS_SHARED,
    )
    .limit(1)
)
_READABLE_WEIGHTS = (
    select(*reads.SUMMARY_COLUMNS, adapters.c.tenant, adapters.c.name, *SHARE_COLUMNS)
    .join(adapters, adapters.c.id == versions.c.adapter_id)
    .outerjoin(adapter_shares, and_(adapter_shares.c.adapter_id == adapters.c.id, _IS_SHARED))
    .where(
        versions.c.weights_digest == bindparam("digest"),
        adapters.c.delete_time_s.is_(None),
        or_(adapters.c.tenant == bindparam("tenant"), adapter_shares.c.tenant.is_not(None)),
    )
    # A tenant's own bytes before another's.
    .order_by(adapters.c.tenant != bindparam("tenant"))
    .limit(1)
)


def owner_of(tenant: TenantId, name: AdapterName) -> TenantId:
    """The tenant whose catalog has what a tenant calls by a name."""
    return split_owner(name)[0] or tenant


def readable_adapter(connection: Connection, tenant: TenantId, name: AdapterName) -> Row[Any]:
    """The row of an adapter that a tenant may read.

    Raises AdapterNotFoundError, also for one that is not shared, or not any more.
    """
    owner, own = split_owner(name)
    if owner is None:
        return reads.live_adapter(connection, tenant, name)
    try:
        if owner == tenant:
            return reads.live_adapter(connection, tenant, own)
        wanted = {"owner": owner, "name": own, "tenant": tenant}
        row = connection.execute(_SHARED_ADAPTER, wanted).one_or_none()
        if row is None:
            raise AdapterNotFoundError(name)
    except AdapterNotFoundError:
        raise AdapterNotFoundError(name) from None
    reads.checked_adapter(row)
    check_share(row, row)
    return row


def check_share(adapter: Any, row: Any) -> None:
    """Raise CatalogDamagedError for a share, as SHARE_COLUMNS have it, that is not what was written."""
    expected = checksums.share_checksum(adapter, row.share_tenant, row.share_time_s)
    checksums.check(row.share_checksum, expected, f"a share of adapter {adapter.name!r}")


def readable_weights(connection: Connection, tenant: TenantId, digest: Digest) -> tuple[TenantId, int] | None:
    """Tenant that a weights blob is kept for, and its size; None where no version that a tenant may read has it."""
    row = connection.execute(_READABLE_WEIGHTS, {"tenant": tenant, "digest": digest}).one_or_none()
    if row is None:
        return None
    if row.tenant != tenant:
        check_share(row, row)
    return TenantId(row.tenant), int(reads.checked_version(row, row).weights_size_bytes)


def as_named(record: AdapterRecord, name: AdapterName) -> AdapterRecord:
    """An adapter under the name that it was asked for by."""
    if record.name == name:
        return record
    newest = replace(record.newest, adapter=name) if record.newest is not None else None
    latest = replace(record.latest_version, adapter=name) if record.latest_version is not None else None
    return replace(record, name=name, newest=newest, latest_version=latest)
