"""Removes what nothing refers to any more, once it was seen so for long enough, and never from absence alone.

A pass begins by making sure that the catalog and the blobs still are those that were found to belong together when the
store started. Everything here blocks: call it from a thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from hotslot.errors import HotslotError
from store_service.content.hold import removing
from store_service.content.keys import key_of_text, text_of_key
from store_service.content.object_collection import ObjectCollection
from store_service.content.ownership import Ownership
from store_service.content.published import PublishedBlobs
from store_service.content.uploads import UploadFolder
from store_service.content.waiting import CollectionOptions, Ledger

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """Result of a pass."""

    num_blobs: int = 0
    """Blobs that left the disk."""
    num_objects: int = 0
    """Blobs that left object storage."""
    num_uploads: int = 0
    num_waiting: int = 0
    """Blobs that nothing refers to and that stay for now."""


class Collector:
    """One store's passes; not to be run twice at the same time."""

    def __init__(
        self,
        published: PublishedBlobs,
        uploads: UploadFolder,
        ledger: Ledger,
        ownership: Ownership,
        options: CollectionOptions,
        clock: Callable[[], float] = time.monotonic,
        objects: ObjectCollection | None = None,
    ) -> None:
        """`objects` passes over object storage, of which the disk is a cache then."""
        self._objects = objects
        self._published = published
        self._uploads = uploads
        self._ledger = ledger
        self._ownership = ownership
        self._options = options
        self._clock = clock
        self._last_s: float | None = None
        """Time of the last pass that saw everything; None where the last one did not."""

    def run(self) -> Collected:
        """One pass; raises StoreUnavailableError and CatalogDamagedError, and then nothing more is removed."""
        last_s, self._last_s = self._last_s, None
        with removing(self._ownership.data_dir) as is_free:
            if not is_free:
                log.info("collection_put_off", why="a backup is taken")
                return Collected()
            collected = self._run(last_s)
            if self._objects is None:
                return collected
            return replace(collected, num_objects=self._objects.run(self._published))

    def close(self) -> None:
        """Note how far the catalog is, so that an earlier copy of it is known as one at the next start."""
        try:
            if self._objects is not None:
                self._objects.close()
            self._ledger.save(self._ownership.check(self._published.catalog.state()).num_changes)
        except (HotslotError, OSError) as exc:
            log.warning("removal_note_not_written", why=str(exc))

    def _run(self, last_s: float | None) -> Collected:
        state = self._ownership.check(self._published.catalog.state())
        now_s = self._clock()
        elapsed_s = min(now_s - last_s, self._options.max_elapsed_s) if last_s is not None else 0.0
        self._published.catalog.purge()
        blobs, uploads = self._ledger.blobs, self._ledger.uploads
        unreferenced = self._published.unreferenced()
        num_blobs = sum(self._published.remove_local(key) for key in self._published.condemned(unreferenced))
        blobs.observe({text_of_key(key): "" for key in unreferenced}, elapsed_s)
        uploads.observe(self._uploads.marks(), elapsed_s)
        self._ledger.save(state.num_changes)
        due = blobs.due(self._options.unreferenced_grace_s)
        if due:
            # The rows that were read in between were this catalog's, too.
            self._ownership.check(self._published.catalog.state())
        num_blobs += sum(self._published.remove_local(key_of_text(name)) for name in due)
        old = frozenset(uploads.due(self._options.upload_ttl_s))
        num_uploads = self._uploads.collect(older_than_s=self._options.upload_ttl_s, is_due=old.__contains__)
        self._last_s = now_s
        return Collected(num_blobs, 0, num_uploads, len(blobs.all()) - len(due))
