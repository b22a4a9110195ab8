"""Adapters of one tenant of the store in memory, and every change of them at its revision."""

import asyncio
from dataclasses import dataclass, field, replace

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import (
    AdapterNotFoundError,
    NotDeletedError,
    TagNotFoundError,
    VersionInUseError,
    VersionNotFoundError,
)
from hotslot.ids import AdapterName, Digest, TagName
from hotslot.references import Reference
from store_service.catalog.records import AdapterRecord, CatalogEvent, NewVersion, TagRecord, VersionRecord
from store_service.catalog.records import VersionSummary as Summary

NOW_S = 1_767_225_600.0
"""The time at which everything happens."""
GRACE_S = 90 * 60.0
"""How long a deleted adapter can be undeleted."""


@dataclass
class MemoryAdapter:
    """Versions, the oldest first, and tags."""

    name: AdapterName
    versions: dict[Digest, NewVersion] = field(default_factory=dict)
    tags: dict[TagName, TagRecord] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    etag: str = ""
    is_deleted: bool = False

    def version(self, digest: Digest) -> VersionRecord:
        """Raises VersionNotFoundError."""
        if digest not in self.versions:
            raise VersionNotFoundError(self.name, digest)
        new = self.versions[digest]
        tags = tuple(name for name, tag in self.tags.items() if tag.digest == digest)
        return VersionRecord(self.name, digest, new.manifest, new.base_model, new.source, new.config_json, NOW_S, tags)

    def tag(self, name: TagName) -> TagRecord:
        """Raises TagNotFoundError."""
        if name not in self.tags:
            raise TagNotFoundError(self.name, name)
        return self.tags[name]

    def newest_first(self) -> list[VersionRecord]:
        """All versions."""
        return [self.version(digest) for digest in reversed(self.versions)]

    def record(self, *, in_full: bool) -> AdapterRecord:
        """The adapter, with its newest version in full or as a listing has it."""
        record = AdapterRecord(
            name=self.name,
            etag=self.etag,
            num_versions=len(self.versions),
            labels=self.labels,
            create_time_s=NOW_S,
            update_time_s=NOW_S,
            delete_time_s=NOW_S if self.is_deleted else None,
            purge_time_s=NOW_S + GRACE_S if self.is_deleted else None,
            tags=tuple(self.tags.values()),
        )
        if not self.versions:
            return record
        newest = self.newest_first()[0]
        return replace(record, latest_version=newest) if in_full else replace(record, newest=summary_of(newest))


def summary_of(version: VersionRecord) -> Summary:
    """A version as listings have it."""
    manifest = version.manifest
    return Summary(
        version.adapter, version.digest, version.base_model, manifest.base_model_digest, manifest.weights_digest,
        manifest.weights_size_bytes, manifest.max_rank, manifest.dtype, version.source, version.create_time_s,
        version.tags,
    )  # fmt: skip


class MemoryAdapters:
    """Adapters by name."""

    def __init__(self) -> None:
        self.revision = 0
        self.events: list[CatalogEvent] = []
        self.changed = asyncio.Event()
        """Set at the next change, and then another one."""
        self._adapters: dict[str, MemoryAdapter] = {}

    def get(self, name: str) -> MemoryAdapter:
        """Raises AdapterNotFoundError, for a deleted one too."""
        adapter = self._adapters.get(name)
        if adapter is None or adapter.is_deleted:
            raise AdapterNotFoundError(name)
        return adapter

    def listed(self, prefix: str, *, with_deleted: bool) -> list[MemoryAdapter]:
        """In the order of their names."""
        found = [adapter for name, adapter in sorted(self._adapters.items()) if name.startswith(prefix)]
        return [adapter for adapter in found if with_deleted or not adapter.is_deleted]

    def resolve(self, reference: Reference) -> VersionRecord:
        """Raises AdapterNotFoundError, TagNotFoundError, VersionNotFoundError."""
        adapter = self.get(reference.name)
        if reference.digest is not None:
            return adapter.version(reference.digest)
        assert reference.tag is not None
        return adapter.version(adapter.tag(reference.tag).digest)

    def create_version(
        self, reference: Reference, new: NewVersion, labels: dict[str, str] | None = None
    ) -> tuple[VersionRecord, bool]:
        """Publish a version under a tag; whether it is new."""
        adapter = self._adapters.setdefault(reference.name, MemoryAdapter(reference.name))
        digest = new.manifest.digest
        is_new = digest not in adapter.versions
        if is_new:
            adapter.versions[digest] = new
            self._change(adapter, AdapterEventKind.VERSION_CREATED, digest=digest)
        if labels and labels != adapter.labels:
            adapter.labels = labels
            self._change(adapter, AdapterEventKind.LABELS_CHANGED)
        if reference.tag is not None:
            self.set_tag(adapter.name, reference.tag, digest)
        return adapter.version(digest), is_new

    def set_tag(self, name: str, tag: TagName, digest: Digest) -> TagRecord:
        """Point a tag at a version."""
        adapter = self.get(name)
        adapter.version(digest)
        if tag not in adapter.tags or adapter.tags[tag].digest != digest:
            self._change(adapter, AdapterEventKind.TAG_MOVED, tag, digest)
            adapter.tags[tag] = TagRecord(tag, digest, adapter.etag, NOW_S)
        return adapter.tags[tag]

    def delete_tag(self, name: str, tag: TagName) -> None:
        """Remove a tag."""
        adapter = self.get(name)
        digest = adapter.tag(tag).digest
        del adapter.tags[tag]
        self._change(adapter, AdapterEventKind.TAG_DELETED, tag, digest)

    def delete_version(self, name: str, digest: Digest, *, force: bool) -> None:
        """Remove a version, with its tags only by force."""
        adapter = self.get(name)
        tags = adapter.version(digest).tags
        if tags and not force:
            raise VersionInUseError(name, digest, tags)
        for tag in tags:
            self.delete_tag(name, tag)
        del adapter.versions[digest]
        self._change(adapter, AdapterEventKind.VERSION_DELETED, digest=digest)

    def delete(self, name: str) -> MemoryAdapter:
        """Remove an adapter, until it is undeleted."""
        adapter = self.get(name)
        adapter.is_deleted = True
        self._change(adapter, AdapterEventKind.ADAPTER_DELETED)
        return adapter

    def undelete(self, name: str) -> MemoryAdapter:
        """Bring an adapter back."""
        adapter = self._adapters.get(name)
        if adapter is None:
            raise AdapterNotFoundError(name)
        if not adapter.is_deleted:
            raise NotDeletedError(name)
        adapter.is_deleted = False
        self._change(adapter, AdapterEventKind.ADAPTER_UNDELETED)
        return adapter

    def _change(
        self, adapter: MemoryAdapter, kind: AdapterEventKind, tag: TagName | None = None, digest: Digest | None = None
    ) -> None:
        self.revision += 1
        adapter.etag = str(self.revision)
        self.events.append(CatalogEvent(self.revision, kind, adapter.name, tag, digest, NOW_S))
        self.changed.set()
        self.changed = asyncio.Event()
