"""The steps of a change to an adapter; every function works inside its caller's transaction."""

import json
from collections.abc import Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import (
    AdapterNotFoundError,
    BaseModelNotFoundError,
    EtagMismatchError,
    FieldViolation,
    InvalidRequestError,
)
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.references import check_own
from store_service.catalog import checksums, reads
from store_service.catalog.changes import Change
from store_service.catalog.records import MAX_ANNOTATIONS, MAX_LABELS, NewVersion
from store_service.catalog.references import note_dropped
from store_service.catalog.tables import adapters, base_models, labels, tags, versions


def adapter_for_writing(connection: Connection, change: Change, tenant: TenantId, name: AdapterName) -> Row[Any]:
    """The adapter's row, made when there is none; a deleted adapter of the name stays deleted.

    Raises InvalidReferenceError for the name of an adapter that another tenant shares.
    """
    check_own(name)
    with suppress(AdapterNotFoundError):
        return reads.live_adapter(connection, tenant, name)
    values = {
        "tenant": tenant,
        "name": name,
        "create_time_s": change.time_s,
        "delete_time_s": None,
        "purge_time_s": None,
    }
    checksum = checksums.adapter_checksum(SimpleNamespace(**values))
    connection.execute(insert(adapters).values(**values, revision=0, update_time_s=change.time_s, checksum=checksum))
    return reads.live_adapter(connection, tenant, name)


def hold_base_model(connection: Connection, version: NewVersion) -> None:
    """Keep a version's base model from being deleted before the transaction ends; raises BaseModelNotFoundError."""
    digest = version.manifest.base_model_digest
    query = select(base_models.c.id).where(base_models.c.digest == digest).with_for_update(read=True)
    if connection.execute(query).first() is None:
        raise BaseModelNotFoundError(digest)


def set_deletion(
    connection: Connection, adapter: Row[Any], delete_time_s: float | None, purge_time_s: float | None
) -> None:
    """Mark an adapter as deleted and until when it is kept, or as not deleted."""
    times = {"delete_time_s": delete_time_s, "purge_time_s": purge_time_s}
    changed = SimpleNamespace(**{**adapter._asdict(), **times})
    connection.execute(
        update(adapters)
        .where(adapters.c.id == adapter.id)
        .values(**times, checksum=checksums.adapter_checksum(changed))
    )


def insert_version(connection: Connection, change: Change, adapter: Row[Any], version: NewVersion) -> Row[Any]:
    """Add a version that the adapter does not have."""
    manifest = version.manifest
    values = {
        "adapter_id": adapter.id,
        "digest": manifest.digest,
        "manifest_json": manifest.canonical_json(),
        "base_model": version.base_model,
        "base_model_digest": manifest.base_model_digest,
        "weights_digest": manifest.weights_digest,
        "weights_size_bytes": manifest.weights_size_bytes,
        "max_rank": manifest.max_rank,
        "dtype": manifest.dtype,
        "source": version.source,
        "config_json": version.config_json,
        "create_time_s": change.time_s,
        "use_time_s": change.time_s,
        "annotations": _annotations_json({key: value for key, value in version.annotations if value}),
    }
    row = SimpleNamespace(**values)
    connection.execute(
        insert(versions).values(
            **values,
            checksum=checksums.version_checksum(adapter, row),
            config_checksum=checksums.config_checksum(adapter, row),
            annotations_checksum=checksums.annotations_checksum(adapter, row),
        )
    )
    change.add_event(AdapterEventKind.VERSION_CREATED, adapter.id, adapter.name, None, manifest.digest)
    return reads.version_row(connection, adapter, manifest.digest)


def merge_annotations(
    connection: Connection, change: Change, adapter: Row[Any], version: Row[Any], new: Mapping[str, str]
) -> Row[Any]:
    """Set annotations, leaving those of other keys; an empty value removes one. Returns the version's row.

    Raises InvalidRequestError where the version would have more of them than MAX_ANNOTATIONS.
    """
    before = dict(reads.annotations_of(adapter, version))
    after = {key: value for key, value in (before | dict(new)).items() if value}
    if after == before:
        return version
    if len(after) > MAX_ANNOTATIONS:
        problem = f"the version would have {len(after)}, at most {MAX_ANNOTATIONS}; an empty value removes one"
        raise InvalidRequestError([FieldViolation("annotations", problem)])
    text = _annotations_json(after)
    checksum = checksums.annotations_checksum(adapter, SimpleNamespace(digest=version.digest, annotations=text))
    values = {"annotations": text, "annotations_checksum": checksum}
    connection.execute(update(versions).where(versions.c.id == version.id).values(**values))
    change.add_event(AdapterEventKind.LABELS_CHANGED, adapter.id, adapter.name, None, Digest(version.digest))
    return reads.version_row(connection, adapter, Digest(version.digest))


def _annotations_json(annotations: Mapping[str, str]) -> str:
    return json.dumps(annotations, sort_keys=True) if annotations else ""


def remove_version(connection: Connection, change: Change, adapter: Row[Any], version: Row[Any]) -> int:
    """Remove a version that no tag points at; returns the revision."""
    connection.execute(delete(versions).where(versions.c.id == version.id))
    note_dropped(connection, adapter.tenant, version.weights_digest)
    return change.add_event(AdapterEventKind.VERSION_DELETED, adapter.id, adapter.name, None, Digest(version.digest))


def merge_labels(connection: Connection, change: Change, adapter: Row[Any], new_labels: dict[str, str]) -> None:
    """Set labels, leaving those of other keys; an empty value removes one.

    Raises InvalidRequestError where the adapter would have more of them than MAX_LABELS.
    """
    rows = connection.execute(select(labels).where(labels.c.adapter_id == adapter.id))
    stored = {row.key: (row.value, row.checksum) for row in rows}
    wanted = {
        key: (value, checksums.label_checksum(adapter, SimpleNamespace(key=key, value=value))) if value else None
        for key, value in new_labels.items()
    }
    changed = {key: label for key, label in wanted.items() if stored.get(key) != label}
    if not changed:
        return
    added = {key for key, label in changed.items() if label is not None} - stored.keys()
    num_after = len(stored | wanted) - sum(label is None for label in wanted.values())
    if added and num_after > MAX_LABELS:
        problem = f"{adapter.name} would have {num_after}, at most {MAX_LABELS}; an empty value removes one"
        raise InvalidRequestError([FieldViolation("labels", problem)])
    connection.execute(delete(labels).where(labels.c.adapter_id == adapter.id, labels.c.key.in_(changed)))
    for key, label in changed.items():
        if label is not None:
            value, checksum = label
            connection.execute(insert(labels).values(adapter_id=adapter.id, key=key, value=value, checksum=checksum))
    change.add_event(AdapterEventKind.LABELS_CHANGED, adapter.id, adapter.name, None, None)


def note_use(connection: Connection, version_id: int, time_s: float) -> None:
    """Note that a version lost a tag, or was asked for by its digest, for retention."""
    connection.execute(update(versions).where(versions.c.id == version_id).values(use_time_s=time_s))


def move_tag(
    connection: Connection, change: Change, adapter: Row[Any], tag: TagName, version: Row[Any], etag: str
) -> None:
    """Point a tag at a version, if its etag is still the one given; raises EtagMismatchError."""
    current = reads.tag_row(connection, adapter, tag)
    found = reads.etag_of(current.revision) if current is not None else ""
    if etag and etag != found:
        raise EtagMismatchError(f"tag {adapter.name}:{tag}", found, etag)
    if current is not None and current.version_id == version.id:
        return
    digest = Digest(version.digest)
    revision = change.add_event(AdapterEventKind.TAG_MOVED, adapter.id, adapter.name, tag, digest)
    connection.execute(delete(tags).where(tags.c.adapter_id == adapter.id, tags.c.name == tag))
    if current is not None:
        note_use(connection, current.version_id, change.time_s)
    values = {
        "adapter_id": adapter.id,
        "name": tag,
        "version_id": version.id,
        "revision": revision,
        "update_time_s": change.time_s,
    }
    checksum = checksums.tag_checksum(adapter, SimpleNamespace(**values), digest)
    connection.execute(insert(tags).values(**values, checksum=checksum))
