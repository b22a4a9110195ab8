"""Rows of the catalog's tables as records; every function works inside its caller's transaction."""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import AdapterNotFoundError, VersionNotFoundError
from hotslot.formats.manifest import Manifest, parse_manifest
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from store_service.catalog import checksums
from store_service.catalog.records import (
    AdapterRecord,
    Annotations,
    CatalogEvent,
    TagRecord,
    VersionRecord,
    VersionSummary,
    WeightsUse,
)
from store_service.catalog.tables import adapters, catalog_identity, events, labels, tags, tenants, versions

MAX_PARSED = 64
MOST_NAMES = 500
"""Names of one query; beyond them it asks for all there are."""
"""Manifests of several hundred modules take a tenth of a megabyte and a millisecond each."""
SUMMARY_COLUMNS: Sequence[Any] = [
    column for column in versions.c if column.name not in ("manifest_json", "config_json")
]
"""Columns of a version, without those that are large."""

# Queries of every resolve, put together once: SQLAlchemy takes as long for that as SQLite for the answers.
_LIVE_ADAPTER = select(adapters).where(
    adapters.c.tenant == bindparam("tenant"), adapters.c.name == bindparam("name"), adapters.c.delete_time_s.is_(None)
)
_TAG = (
    select(tags, versions.c.digest.label("version_digest"))
    .join(versions, versions.c.id == tags.c.version_id)
    .where(tags.c.adapter_id == bindparam("adapter_id"), tags.c.name == bindparam("tag"))
)
_VERSION = select(versions).where(
    versions.c.adapter_id == bindparam("adapter_id"), versions.c.digest == bindparam("digest")
)
_TAGS_OF_VERSIONS = select(tags).where(tags.c.version_id.in_(bindparam("ids", expanding=True))).order_by(tags.c.name)
_REVISION = select(tenants.c.revision).where(tenants.c.name == bindparam("tenant"))


def etag_of(revision: int) -> str:
    """The etag of something last changed at a revision."""
    return f"r{revision}"


def revision_of(connection: Connection, tenant: TenantId) -> int:
    """A tenant's newest revision."""
    return connection.execute(_REVISION, {"tenant": tenant}).scalar_one_or_none() or 0


def revisions_of(connection: Connection, names: Collection[TenantId]) -> dict[TenantId, int]:
    """Newest revisions of tenants."""
    query = select(tenants.c.name, tenants.c.revision)
    rows = connection.execute(query.where(tenants.c.name.in_(names)) if len(names) <= MOST_NAMES else query)
    found = {TenantId(row.name): int(row.revision) for row in rows}
    return {name: found.get(name, 0) for name in names}


def kept_revisions(connection: Connection, tenant: TenantId) -> tuple[int, int]:
    """The revision before the oldest kept event of a tenant, and its newest; zeros before the first change."""
    row = connection.execute(select(tenants).where(tenants.c.name == tenant)).one_or_none()
    return (row.oldest_revision, row.revision) if row is not None else (0, 0)


def identity(connection: Connection) -> str:
    """Id of the catalog; empty where it has lost it."""
    return connection.execute(select(catalog_identity.c.id)).scalar_one_or_none() or ""


def num_changes(connection: Connection) -> int:
    """Number of the changes of all tenants."""
    return int(connection.execute(select(func.sum(tenants.c.revision))).scalar_one() or 0)


def events_after(connection: Connection, tenant: TenantId, revision: int, limit: int) -> list[CatalogEvent]:
    """A tenant's events after a revision, in order."""
    query = select(events).where(events.c.tenant == tenant, events.c.revision > revision)
    return [event(row) for row in connection.execute(query.order_by(events.c.revision).limit(limit))]


def live_adapter(connection: Connection, tenant: TenantId, name: AdapterName) -> Row[Any]:
    """The adapter's row; raises AdapterNotFoundError."""
    row = connection.execute(_LIVE_ADAPTER, {"tenant": tenant, "name": name}).one_or_none()
    if row is None:
        raise AdapterNotFoundError(name)
    return checked_adapter(row)


def checked_adapter(row: Row[Any]) -> Row[Any]:
    """The row again; raises CatalogDamagedError when it is not what was written."""
    checksums.check(row.checksum, checksums.adapter_checksum(row), f"adapter {row.name!r}")
    return row


def checked_tag(adapter: Row[Any], row: Row[Any], digest: Digest) -> Row[Any]:
    """The row again, if it still is the adapter's tag for this version; raises CatalogDamagedError."""
    checksums.check(row.checksum, checksums.tag_checksum(adapter, row, digest), f"tag {adapter.name}:{row.name}")
    return row


def tag_row(connection: Connection, adapter: Row[Any], tag: TagName) -> Row[Any] | None:
    """A tag's row, with its version's digest as `version_digest`."""
    row = connection.execute(_TAG, {"adapter_id": adapter.id, "tag": tag}).one_or_none()
    return checked_tag(adapter, row, row.version_digest) if row is not None else None


def version_row(connection: Connection, adapter: Row[Any], digest: Digest) -> Row[Any]:
    """The row of one of an adapter's versions; raises VersionNotFoundError."""
    row = connection.execute(_VERSION, {"adapter_id": adapter.id, "digest": digest}).one_or_none()
    if row is None:
        raise VersionNotFoundError(adapter.name, digest)
    return row


def version_record(connection: Connection, adapter: Row[Any], row: Row[Any]) -> VersionRecord:
    """A version with the tags that point at it."""
    return _version(adapter, row, _tag_names(connection, adapter, [row])[row.id])


def version_summaries(connection: Connection, adapter: Row[Any], rows: Sequence[Row[Any]]) -> list[VersionSummary]:
    """Versions of one adapter, of which the rows hold SUMMARY_COLUMNS, with their tags."""
    pointing = _tag_names(connection, adapter, rows)
    return [_summary(adapter, row, pointing[row.id]) for row in rows]


def _tag_names(connection: Connection, adapter: Row[Any], rows: Sequence[Row[Any]]) -> dict[int, list[TagName]]:
    """The tags that point at versions, by the versions' ids."""
    pointing: dict[int, list[TagName]] = defaultdict(list)
    digest_of = {row.id: Digest(row.digest) for row in rows}
    for tag in connection.execute(_TAGS_OF_VERSIONS, {"ids": list(digest_of)}):
        checked_tag(adapter, tag, digest_of[tag.version_id])
        pointing[tag.version_id].append(TagName(tag.name))
    return pointing


def adapter_records(connection: Connection, rows: Sequence[Row[Any]]) -> list[AdapterRecord]:
    """Adapters with tags, labels and their newest version, in a fixed number of queries."""
    adapter_of = {row.id: checked_adapter(row) for row in rows}
    ids = list(adapter_of)
    label_rows = connection.execute(select(labels).where(labels.c.adapter_id.in_(ids)).order_by(labels.c.key))
    labels_of: dict[int, dict[str, str]] = defaultdict(dict)
    for label in label_rows:
        adapter = adapter_of[label.adapter_id]
        checksums.check(label.checksum, checksums.label_checksum(adapter, label), f"a label of {adapter.name!r}")
        labels_of[label.adapter_id][label.key] = label.value
    tags_of: dict[int, list[tuple[int, TagRecord]]] = defaultdict(list)
    for tag in connection.execute(
        select(tags, versions.c.digest.label("version_digest"))
        .join(versions, versions.c.id == tags.c.version_id)
        .where(tags.c.adapter_id.in_(ids))
        .order_by(tags.c.name)
    ):
        digest = Digest(tag.version_digest)
        checked_tag(adapter_of[tag.adapter_id], tag, digest)
        record = TagRecord(TagName(tag.name), digest, etag_of(tag.revision), tag.update_time_s)
        tags_of[tag.adapter_id].append((tag.version_id, record))
    newest = (
        select(versions.c.adapter_id, func.max(versions.c.id).label("id"), func.count().label("count"))
        .where(versions.c.adapter_id.in_(ids))
        .group_by(versions.c.adapter_id)
        .subquery()
    )
    newest_of = {
        row.adapter_id: row
        for row in connection.execute(
            select(*SUMMARY_COLUMNS, newest.c.count).join(newest, newest.c.id == versions.c.id)
        )
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
                newest=_summary(row, version, pointing) if version is not None else None,
            )
        )
    return records


def adapter_record(connection: Connection, row: Row[Any]) -> AdapterRecord:
    """One adapter as it is now, whatever its row said before."""
    fresh = connection.execute(select(adapters).where(adapters.c.id == row.id)).one()
    record = adapter_records(connection, [fresh])[0]
    if record.newest is None:
        return record
    newest = version_row(connection, fresh, record.newest.digest)
    return replace(record, latest_version=_version(fresh, newest, record.newest.tags))


def event(row: Row[Any]) -> CatalogEvent:
    """One change."""
    checksums.check(row.checksum, checksums.event_checksum(row), f"event {row.revision}")
    tag = TagName(row.tag) if row.tag is not None else None
    digest = Digest(row.digest) if row.digest is not None else None
    return CatalogEvent(row.revision, AdapterEventKind(row.kind), AdapterName(row.adapter), tag, digest, row.time_s)


def weights_use(row: Any) -> WeightsUse:
    """A version with its adapter's `tenant`, `name`, and whether it `is_pinned`."""
    checked_version(row, row)
    return WeightsUse(
        TenantId(row.tenant),
        Digest(row.weights_digest),
        row.source,
        Digest(row.base_model_digest),
        bool(row.is_pinned),
    )


def checked_version(adapter: Any, row: Any) -> Any:
    """The row again; raises CatalogDamagedError when it is not what was written. The adapter's row may be the same."""
    checksums.check(row.checksum, checksums.version_checksum(adapter, row), f"version {row.digest} of {adapter.name!r}")
    return row


def _summary(adapter: Any, row: Any, tag_names: Sequence[TagName]) -> VersionSummary:
    checked_version(adapter, row)
    return VersionSummary(
        adapter=AdapterName(adapter.name),
        digest=Digest(row.digest),
        base_model=row.base_model,
        base_model_digest=Digest(row.base_model_digest),
        weights_digest=Digest(row.weights_digest),
        weights_size_bytes=row.weights_size_bytes,
        max_rank=row.max_rank,
        dtype=row.dtype,
        source=row.source,
        create_time_s=row.create_time_s,
        tags=tuple(tag_names),
        annotations=annotations_of(adapter, row),
    )


def annotations_of(adapter: Any, row: Any) -> Annotations:
    """A version's annotations by key; raises CatalogDamagedError when they are not what was written."""
    what = f"the annotations of version {row.digest} of {adapter.name!r}"
    checksums.check(row.annotations_checksum, checksums.annotations_checksum(adapter, row), what)
    return tuple(sorted(json.loads(row.annotations).items())) if row.annotations else ()


def _version(adapter: Row[Any], row: Row[Any], tag_names: Sequence[TagName]) -> VersionRecord:
    """Raises DigestMismatchError when the stored manifest is not what its digest says any more."""
    checked_version(adapter, row)
    what = f"the config of version {row.digest} of {adapter.name!r}"
    checksums.check(row.config_checksum, checksums.config_checksum(adapter, row), what)
    return VersionRecord(
        adapter=AdapterName(adapter.name),
        digest=Digest(row.digest),
        manifest=_parsed(row.manifest_json, Digest(row.digest)),
        base_model=row.base_model,
        source=row.source,
        config_json=row.config_json,
        create_time_s=row.create_time_s,
        tags=tuple(tag_names),
        annotations=annotations_of(adapter, row),
    )


@lru_cache(maxsize=MAX_PARSED)
def _parsed(manifest_json: bytes, digest: Digest) -> Manifest:
    """Remembered by all of its bytes, so that what has changed on the disk is verified, and found, again."""
    return parse_manifest(manifest_json, digest)
