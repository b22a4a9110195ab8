"""Adapters, versions and tags in a relational database. Every public method is one transaction."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from sqlalchemy import Engine, delete, exists, func, select, tuple_

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import (
    AdapterNotFoundError,
    CatalogDamagedError,
    EtagMismatchError,
    NotDeletedError,
    RevisionCompactedError,
    TagNotFoundError,
    VersionInUseError,
)
from hotslot.formats.base_spec import looks_like_a_digest
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.references import Reference
from store_service.catalog import access, reads, writes
from store_service.catalog.blob_claims import BlobClaim, redeem
from store_service.catalog.changes import OnChange, changing
from store_service.catalog.database import reading
from store_service.catalog.policies import keep_versions, policy_of
from store_service.catalog.quota_checks import NO_QUOTAS, StoredQuotas, growing
from store_service.catalog.records import (
    AdapterFilter,
    AdapterRecord,
    CatalogEvent,
    CatalogState,
    NewVersion,
    Resolution,
    TagRecord,
    VersionRecord,
    VersionSummary,
    WeightsUse,
)
from store_service.catalog.references import WeightsReferences, purge_expired
from store_service.catalog.tables import adapters, labels, tags, versions


class Catalog:
    """Adapters, versions and tags; a tenant sees its own, and what others share with it.

    Everything that changes an adapter also writes an event, at the tenant's next revision, in the same transaction, and
    returns that revision: a later `resolve` at it or above sees what was written.
    Any method may raise StoreUnavailableError, and CatalogDamagedError for damaged rows, and blocks: call from threads.
    """

    def __init__(
        self, engine: Engine, on_change: OnChange = lambda tenant: None, quotas: StoredQuotas = NO_QUOTAS
    ) -> None:
        self._engine = engine
        self.references = WeightsReferences(engine)
        self._changing = partial(changing, engine, on_change=on_change)
        self._growing = partial(growing, engine, on_change, quotas)

    def create_version(
        self,
        tenant: TenantId,
        name: AdapterName,
        version: NewVersion,
        *,
        tag: TagName | None,
        new_labels: dict[str, str],
        tag_etag: str,
        more_tags: Iterable[TagName] = (),
        keep: int | None = None,
        requires_base: bool = False,
        claim: BlobClaim | None = None,
    ) -> tuple[VersionRecord, bool]:
        """Add a version, and move tags to it; the flag is false where the version was there. Labels and annotations
        are merged; an empty value removes one. `keep` sets how many versions the adapter's policy keeps.

        Raises EtagMismatchError, TenantQuotaError, InvalidRequestError for more than MAX_LABELS or MAX_ANNOTATIONS,
        and, where it `requires_base`, BaseModelNotFoundError for one that is not registered; nothing is changed then.
        Nor is it after ClaimBrokenError: the weights, which were stored under the claim, may have been removed.
        """
        with self._growing(tenant) as (connection, change):
            if claim is not None:
                redeem(connection, claim)
            if requires_base:
                writes.hold_base_model(connection, version)
            adapter = writes.adapter_for_writing(connection, change, tenant, name)
            digest = version.manifest.digest
            row = connection.execute(
                select(versions).where(versions.c.adapter_id == adapter.id, versions.c.digest == digest)
            ).one_or_none()
            created = row is None
            if row is None:
                row = writes.insert_version(connection, change, adapter, version)
            elif version.annotations:
                row = writes.merge_annotations(connection, change, adapter, row, dict(version.annotations))
            if new_labels:
                writes.merge_labels(connection, change, adapter, new_labels)
            if tag is not None:
                writes.move_tag(connection, change, adapter, tag, row, tag_etag)
            for more in more_tags:
                writes.move_tag(connection, change, adapter, more, row, "")
            if keep is not None:
                keep_versions(connection, change, adapter, keep)
            return replace(reads.version_record(connection, adapter, row), revision=change.revision), created

    def get_adapter(self, tenant: TenantId, name: AdapterName) -> AdapterRecord:
        """Raises AdapterNotFoundError."""
        with reading(self._engine) as connection:
            adapter = access.readable_adapter(connection, tenant, name)
            return access.as_named(reads.adapter_record(connection, adapter), name)

    def list_adapters(
        self, tenant: TenantId, wanted: AdapterFilter, *, limit: int, after: tuple[str, int]
    ) -> tuple[list[tuple[int, AdapterRecord]], int]:
        """Adapters by name, each with its position, and the tenant's revision.

        `after` is the name and position of the last one known; ("", 0) means from the beginning.
        """
        query = select(adapters).where(adapters.c.tenant == tenant)
        if after != ("", 0):
            query = query.where(tuple_(adapters.c.name, adapters.c.id) > tuple_(*after))
        if not wanted.show_deleted:
            query = query.where(adapters.c.delete_time_s.is_(None))
        if wanted.name_prefix:
            query = query.where(func.substr(adapters.c.name, 1, len(wanted.name_prefix)) == wanted.name_prefix)
        if wanted.base_model:
            by_digest = looks_like_a_digest(wanted.base_model)
            is_for = (versions.c.base_model_digest if by_digest else versions.c.base_model) == wanted.base_model
            query = query.where(exists().where(versions.c.adapter_id == adapters.c.id, is_for))
        for key, value in wanted.labels.items():
            query = query.where(
                exists().where(labels.c.adapter_id == adapters.c.id, labels.c.key == key, labels.c.value == value)
            )
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(adapters.c.name, adapters.c.id).limit(limit)).all()
            records = reads.adapter_records(connection, rows)
            found = [(row.id, record) for row, record in zip(rows, records, strict=True)]
            return found, reads.revision_of(connection, tenant)

    def list_versions(
        self, tenant: TenantId, name: AdapterName, *, limit: int, before: int
    ) -> list[tuple[int, VersionSummary]]:
        """Versions, newest first, each with its position; `before` 0 means from the newest.

        Raises AdapterNotFoundError.
        """
        with reading(self._engine) as connection:
            adapter = access.readable_adapter(connection, tenant, name)
            query = select(*reads.SUMMARY_COLUMNS).where(versions.c.adapter_id == adapter.id)
            if before:
                query = query.where(versions.c.id < before)
            rows = connection.execute(query.order_by(versions.c.id.desc()).limit(limit)).all()
            records = reads.version_summaries(connection, adapter, rows)
            return [(row.id, replace(record, adapter=name)) for row, record in zip(rows, records, strict=True)]

    def resolve(self, tenant: TenantId, reference: Reference) -> Resolution:
        """Resolve a reference to the version that it stands for now.

        Raises AdapterNotFoundError, TagNotFoundError, VersionNotFoundError.
        """
        with reading(self._engine) as connection:
            adapter = access.readable_adapter(connection, tenant, reference.name)
            if reference.digest is not None:
                row = reads.version_row(connection, adapter, reference.digest)
            else:
                assert reference.tag is not None, "a reference has a tag or a digest"
                tag = reads.tag_row(connection, adapter, reference.tag)
                if tag is None:
                    raise TagNotFoundError(reference.name, reference.tag)
                row = reads.version_row(connection, adapter, tag.version_digest)
            version = replace(reads.version_record(connection, adapter, row), adapter=reference.name)
            revision = reads.revision_of(connection, access.owner_of(tenant, reference.name))
            return Resolution(version, policy_of(connection, adapter), revision)

    def set_tag(self, tenant: TenantId, name: AdapterName, tag: TagName, digest: Digest, *, etag: str) -> TagRecord:
        """Raises AdapterNotFoundError, VersionNotFoundError, EtagMismatchError."""
        with self._changing(tenant) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            row = reads.version_row(connection, adapter, digest)
            writes.move_tag(connection, change, adapter, tag, row, etag)
            moved = next(found for found in reads.adapter_record(connection, adapter).tags if found.name == tag)
            return replace(moved, revision=change.revision)

    def delete_tag(self, tenant: TenantId, name: AdapterName, tag: TagName, *, etag: str) -> int:
        """Returns the revision. Raises AdapterNotFoundError, TagNotFoundError, EtagMismatchError."""
        with self._changing(tenant) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            found = next((entry for entry in reads.adapter_record(connection, adapter).tags if entry.name == tag), None)
            if found is None:
                raise TagNotFoundError(name, tag)
            if etag and etag != found.etag:
                raise EtagMismatchError(f"tag {name}:{tag}", found.etag, etag)
            connection.execute(delete(tags).where(tags.c.adapter_id == adapter.id, tags.c.name == tag))
            writes.note_use(connection, reads.version_row(connection, adapter, found.digest).id, change.time_s)
            return change.add_event(AdapterEventKind.TAG_DELETED, adapter.id, name, tag, found.digest)

    def delete_adapter(self, tenant: TenantId, name: AdapterName, *, etag: str, grace_s: float) -> AdapterRecord:
        """Hide an adapter; it can be brought back within the grace. Raises as `get_adapter`, EtagMismatchError."""
        with self._changing(tenant) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            found = reads.etag_of(adapter.revision)
            if etag and etag != found:
                raise EtagMismatchError(f"adapter {name}", found, etag)
            writes.set_deletion(connection, adapter, change.time_s, change.time_s + grace_s)
            change.add_event(AdapterEventKind.ADAPTER_DELETED, adapter.id, name, None, None)
            return replace(reads.adapter_record(connection, adapter), revision=change.revision)

    def undelete_adapter(self, tenant: TenantId, name: AdapterName) -> AdapterRecord:
        """Raises AdapterNotFoundError (never there, or purged), NotDeletedError and TenantQuotaError."""
        with self._growing(tenant) as (connection, change):
            rows = connection.execute(
                select(adapters)
                .where(adapters.c.tenant == tenant, adapters.c.name == name)
                .order_by(adapters.c.delete_time_s)
            ).all()
            if any(row.delete_time_s is None for row in rows):
                raise NotDeletedError(name)
            undeletable = [row for row in map(reads.checked_adapter, rows) if row.purge_time_s > change.time_s]
            if not undeletable:
                raise AdapterNotFoundError(name)
            adapter = undeletable[-1]
            writes.set_deletion(connection, adapter, None, None)
            change.add_event(AdapterEventKind.ADAPTER_UNDELETED, adapter.id, name, None, None)
            return replace(reads.adapter_record(connection, adapter), revision=change.revision)

    def delete_version(self, tenant: TenantId, name: AdapterName, digest: Digest, *, force: bool) -> int:
        """Returns the revision. Raises AdapterNotFoundError, VersionNotFoundError, VersionInUseError."""
        with self._changing(tenant) as (connection, change):
            adapter = reads.live_adapter(connection, tenant, name)
            row = reads.version_row(connection, adapter, digest)
            pointing = reads.version_record(connection, adapter, row).tags
            if pointing and not force:
                raise VersionInUseError(name, digest, pointing)
            for tag in pointing:
                connection.execute(delete(tags).where(tags.c.adapter_id == adapter.id, tags.c.name == tag))
                change.add_event(AdapterEventKind.TAG_DELETED, adapter.id, name, tag, digest)
            return writes.remove_version(connection, change, adapter, row)

    def purge(self) -> int:
        """Remove for good what was deleted longer ago than its grace; returns how many adapters went."""
        return purge_expired(self._engine)

    def readable_weights(self, tenant: TenantId, digest: Digest) -> tuple[TenantId, int] | None:
        """Tenant that a weights blob is kept for, and its size; None where no version that a tenant may read has it."""
        with reading(self._engine) as connection:
            return access.readable_weights(connection, tenant, digest)

    def weights_uses(self, of: tuple[TenantId, Digest]) -> list[WeightsUse]:
        """The versions of a blob, newest first; deleted adapters' included."""
        return self.references.uses_among([of])

    def referenced_weights(self) -> set[tuple[TenantId, Digest]]:
        """The weights blobs of all versions, deleted adapters' included."""
        return self.references.all()

    def events_after(self, tenant: TenantId, revision: int, *, limit: int) -> list[CatalogEvent]:
        """Events in order. Raises RevisionCompactedError when some after `revision` are gone, or it lies ahead."""
        with reading(self._engine) as connection:
            oldest, newest = reads.kept_revisions(connection, tenant)
            if not oldest <= revision <= newest:
                raise RevisionCompactedError(revision, oldest)
            return reads.events_after(connection, tenant, revision, limit)

    def state(self) -> CatalogState:
        """State of this catalog: its id and the number of its changes."""
        with reading(self._engine) as connection:
            if not (found := reads.identity(connection)):
                raise CatalogDamagedError("it has lost its identity (the row of catalog_identity)")
            return CatalogState(found, reads.num_changes(connection))

    def identity(self) -> str:
        """Id that tells this catalog, and so its revisions, from all others; empty where it has lost it."""
        with reading(self._engine) as connection:
            return reads.identity(connection)

    def revision(self, tenant: TenantId) -> int:
        """The tenant's newest revision; 0 before the first change."""
        with reading(self._engine) as connection:
            return reads.revision_of(connection, tenant)
