"""Rows of the catalog's tables as records; every function works inside its caller's transaction."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, func, select

from shared.errors import AdapterNotFoundError, VersionNotFoundError
from shared.ids import AdapterName, Digest, TagName, TenantId
from shared.manifest import Manifest, parse_manifest
from store_service.catalog.records import AdapterRecord, Event, EventKind, TagRecord, VersionRecord
from store_service.catalog.tables import adapters, labels, tags, tenants, versions

MAX_PARSED = 64
"""Manifests of several hundred modules take a tenth of a megabyte and a millisecond each."""


def etag_of(revision: int) -> str:
    """The etag of something last changed at a revision."""
    return f"r{revision}"


def revision_of(connection: Connection, tenant: TenantId) -> int:
    """A tenant's newest revision."""
    found = connection.execute(select(tenants.c.revision).where(tenants.c.name == tenant)).scalar_one_or_none()
    return found or 0


def live_adapter(connection: Connection, tenant: TenantId, name: AdapterName) -> Row[Any]:
    """The adapter's row; raises AdapterNotFoundError."""
    row = connection.execute(
        select(adapters).where(adapters.c.tenant == tenant, adapters.c.name == name, adapters.c.delete_time_s.is_(None))
    ).one_or_none()
    if row is None:
        raise AdapterNotFoundError(name)
    return row


def version_row(connection: Connection, adapter: Row[Any], digest: Digest) -> Row[Any]:
    """The row of one of an adapter's versions; raises VersionNotFoundError."""
    row = connection.execute(
        select(versions).where(versions.c.adapter_id == adapter.id, versions.c.digest == digest)
    ).one_or_none()
    if row is None:
        raise VersionNotFoundError(adapter.name, digest)
    return row


def version_record(connection: Connection, adapter: Row[Any], row: Row[Any]) -> VersionRecord:
    """A version with the tags that point at it."""
    return version_records(connection, adapter, [row])[0]


def version_records(connection: Connection, adapter: Row[Any], rows: Sequence[Row[Any]]) -> list[VersionRecord]:
    """Versions of one adapter, with their tags."""
    pointing: dict[int, list[TagName]] = defaultdict(list)
    for tag in connection.execute(
        select(tags.c.name, tags.c.version_id)
        .where(tags.c.version_id.in_([row.id for row in rows]))
        .order_by(tags.c.name)
    ):
        pointing[tag.version_id].append(TagName(tag.name))
    return [_version(adapter.name, row, pointing[row.id]) for row in rows]


def adapter_records(connection: Connection, rows: Sequence[Row[Any]]) -> list[AdapterRecord]:
    """Adapters with tags, labels and their newest version, in a fixed number of queries."""
    ids = [row.id for row in rows]
    label_rows = connection.execute(select(labels).where(labels.c.adapter_id.in_(ids)).order_by(labels.c.key))
    labels_of: dict[int, dict[str, str]] = defaultdict(dict)
    for label in label_rows:
        labels_of[label.adapter_id][label.key] = label.value
    tags_of: dict[int, list[tuple[int, TagRecord]]] = defaultdict(list)
    for tag in connection.execute(
        select(tags, versions.c.digest)
        .join(versions, versions.c.id == tags.c.version_id)
        .where(tags.c.adapter_id.in_(ids))
        .order_by(tags.c.name)
    ):
        record = TagRecord(TagName(tag.name), Digest(tag.digest), etag_of(tag.revision), tag.update_time_s)
        tags_of[tag.adapter_id].append((tag.version_id, record))
    newest = (
        select(versions.c.adapter_id, func.max(versions.c.id).label("id"), func.count().label("count"))
        .where(versions.c.adapter_id.in_(ids))
        .group_by(versions.c.adapter_id)
        .subquery()
    )
    newest_of = {
        row.adapter_id: row
        for row in connection.execute(select(versions, newest.c.count).join(newest, newest.c.id == versions.c.id))
    }
    records = []
    for row in rows:
        version = newest_of.get(row.id)
        pointing = [tag.name for version_id, tag in tags_of[row.id] if version and version_id == version.id]
        records.append(
            AdapterRecord(
                name=AdapterName(row.name),
                etag=etag_of(row.revision),
                num_versions=version.count if version is not None else 0,  # type: ignore[arg-type]
                labels=labels_of[row.id],
                create_time_s=row.create_time_s,
                update_time_s=row.update_time_s,
                delete_time_s=row.delete_time_s,
                purge_time_s=row.purge_time_s,
                tags=tuple(tag for _, tag in tags_of[row.id]),
                latest_version=_version(row.name, version, pointing) if version is not None else None,
            )
        )
    return records


def adapter_record(connection: Connection, row: Row[Any]) -> AdapterRecord:
    """One adapter as it is now, whatever its row said before."""
    fresh = connection.execute(select(adapters).where(adapters.c.id == row.id)).one()
    return adapter_records(connection, [fresh])[0]


def event(row: Row[Any]) -> Event:
    """One change."""
    tag = TagName(row.tag) if row.tag is not None else None
    digest = Digest(row.digest) if row.digest is not None else None
    return Event(row.revision, EventKind(row.kind), AdapterName(row.adapter), tag, digest, row.time_s)


def _version(adapter: str, row: Row[Any], tag_names: Sequence[TagName]) -> VersionRecord:
    """Raises DigestMismatchError when the stored manifest is not what its digest says any more."""
    return VersionRecord(
        adapter=AdapterName(adapter),
        digest=Digest(row.digest),
        manifest=_parsed(row.manifest_json, Digest(row.digest)),
        base_model=row.base_model,
        source=row.source,
        config_json=row.config_json,
        create_time_s=row.create_time_s,
        tags=tuple(tag_names),
    )


@lru_cache(maxsize=MAX_PARSED)
def _parsed(manifest_json: bytes, digest: Digest) -> Manifest:
    """Remembered by all of its bytes, so that what has changed on the disk is verified, and found, again."""
    return parse_manifest(manifest_json, digest)
