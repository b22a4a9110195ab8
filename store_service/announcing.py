"""Announces versions while they are published, so that workers read their weights while these are made durable.

Reading takes as long as that, and one after the other both stood between a trainer and its first token. What a worker
has read so is of no use before the version is there: no reference leads to it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from hotslot.contract.catalog import AdapterEventKind
from hotslot.formats.manifest import Manifest
from hotslot.ids import TenantId
from store_service.catalog.records import CatalogEvent
from store_service.content.published import PublishedBlobs
from store_service.content.writer import Writer
from store_service.publication import Publication


class Hearers(Protocol):
    """Watchers who want to hear of publications under way; called on any thread."""

    def hears(self, tenant: TenantId) -> bool:
        """Tell whether any watcher of a tenant does."""

    def announce(self, tenant: TenantId, events: Sequence[CatalogEvent]) -> None:
        """Tell them of a version, under each of its tags."""


class Announcer:
    """Tells of staged versions, and lets their bytes be read. Everything here is called on the publication's thread."""

    def __init__(self, published: PublishedBlobs, hearers: Hearers) -> None:
        self._published = published
        self._hearers = hearers

    @contextmanager
    def announced(
        self, tenant: TenantId, publication: Publication, manifest: Manifest, staged: Writer | None
    ) -> Iterator[None]:
        """Announce a version whose weights are staged; the block publishes it, or fails to.

        Nothing is announced without a staged blob, since published ones can be read, without watchers who listen, and
        where there is object storage: the worker's stream may reach another store, which has not got the bytes.
        """
        if staged is None or self._published.blobs.objects is not None or not self._hearers.hears(tenant):
            yield
            return
        reference, digest, manifest_json = publication.reference, manifest.digest, manifest.canonical_json()
        tags = dict.fromkeys(tag for tag in (reference.tag, *publication.tags) if tag is not None)
        kind, now_s = AdapterEventKind.VERSION_COMING, time.time()
        events = [CatalogEvent(0, kind, reference.name, tag, digest, now_s, manifest_json) for tag in tags]
        with self._published.coming((tenant, manifest.weights_digest), staged.path, manifest.weights_size_bytes):
            self._hearers.announce(tenant, events)
            yield
