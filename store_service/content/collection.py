"""Removes what nothing refers to any more, once it was seen so for long enough, and never from absence alone.

A pass begins by making sure that the catalog and the blobs still are those that were found to belong together when the
store started. Everything here blocks: call it from a thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from hotslot.errors import HotslotError, StoreUnavailableError
from hotslot.ids import Digest, TenantId
from store_service.catalog.records import CatalogState
from store_service.content.hold import removing
from store_service.content.keys import BlobKey
from store_service.content.objects import ObjectBlobs
from store_service.content.ownership import FolderOwner
from store_service.content.published import PublishedBlobs
from store_service.content.uploads import UploadFolder
from store_service.content.waiting import CollectionOptions, Ledger

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """Result of a pass."""

    num_blobs: int = 0
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
        ownership: "Ownership",
        options: CollectionOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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
            return self._run(last_s)

    def close(self) -> None:
        """Note how far the catalog is, so that an earlier copy of it is known as one at the next start."""
        try:
            self._ledger.save(self._ownership.check(self._published.catalog.state()).num_changes)
        except (HotslotError, OSError) as exc:
            log.warning("removal_note_not_written", why=str(exc))

    def _run(self, last_s: float | None) -> Collected:
        state = self._ownership.check(self._published.catalog.state())
        now_s = self._clock()
        elapsed_s = min(now_s - last_s, self._options.max_elapsed_s) if last_s is not None else 0.0
        self._published.catalog.purge()
        blobs, uploads = self._ledger.blobs, self._ledger.uploads
        blobs.observe({_name(key): "" for key in self._published.unreferenced()}, elapsed_s)
        uploads.observe(self._uploads.marks(), elapsed_s)
        self._ledger.save(state.num_changes)
        due = blobs.due(self._options.unreferenced_grace_s)
        if due:
            # The rows that were read in between were this catalog's, too.
            self._ownership.check(self._published.catalog.state())
        num_blobs = sum(self._published.remove_unreferenced(_key(name)) for name in due)
        old = frozenset(uploads.due(self._options.upload_ttl_s))
        num_uploads = self._uploads.collect(older_than_s=self._options.upload_ttl_s, is_due=old.__contains__)
        self._last_s = now_s
        return Collected(num_blobs, num_uploads, len(blobs.all()) - len(due))


class Ownership:
    """The catalog that a store's blobs were found to belong to when it started."""

    def __init__(self, data_dir: Path, catalog_id: str, folder: FolderOwner, objects: ObjectBlobs | None) -> None:
        self.data_dir = data_dir
        self._catalog_id = catalog_id
        self._folder = folder
        self._objects = objects

    def check(self, state: CatalogState) -> CatalogState:
        """The state again; raises StoreUnavailableError when the catalog or the blobs were exchanged meanwhile."""
        if state.id != self._catalog_id:
            raise StoreUnavailableError(
                f"the catalog was exchanged while the store ran ({self._catalog_id} before, {state.id} now); "
                "restart the store: until then nothing is removed"
            )
        if self._folder.read() != {self._catalog_id}:
            raise StoreUnavailableError(
                "the folder of blobs was exchanged while the store ran, or lost its mark; restart the store: until "
                "then nothing is removed"
            )
        if self._objects is not None and (found := self._objects.owner()) != self._catalog_id:
            raise StoreUnavailableError(
                f"the blobs at blob_url belong to another catalog now ({found}); restart the store: until then "
                "nothing is removed"
            )
        return state


def _name(key: BlobKey) -> str:
    return f"{key[0]} {key[1]}"


def _key(name: str) -> BlobKey:
    tenant, _, digest = name.partition(" ")
    return TenantId(tenant), Digest(digest)
