"""Removes what nothing refers to any more, once it was seen so for long enough, and never from absence alone.

A pass begins by making sure that the catalog and the blobs still are those that were found to belong together when the
store started. Everything here blocks: call it from a thread.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

import structlog

from hotslot.contract.garbage import Removal, RemovalKind
from hotslot.errors import HotslotError
from store_service.catalog.references import NONE_DEPARTED, Departed
from store_service.content.garbage import of_adapters, of_blobs, of_uploads, with_copies
from store_service.content.hold import backup_is_taken, removing
from store_service.content.keys import BlobKey, key_of_text, text_of_key
from store_service.content.object_collection import ObjectCollection
from store_service.content.ownership import Ownership
from store_service.content.published import PublishedBlobs
from store_service.content.rounds import CollectionRound, Rounds
from store_service.content.uploads import UploadFolder
from store_service.content.waiting import CollectionOptions, Ledger, Waiting

log = structlog.get_logger(__name__)

_COUNTS = {kind: f"num_{kind}s" for kind in (RemovalKind.BLOB, RemovalKind.OBJECT, RemovalKind.UPLOAD)}


def counts_of(removals: Iterable[Removal]) -> dict[str, int]:
    """Numbers of removals by kind, for logs."""
    counts = Counter(removal.kind for removal in removals)
    return {name: counts[kind] for kind, name in _COUNTS.items()}


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at the disk."""

    removals: list[Removal]
    blobs: Waiting
    uploads: Waiting
    until_s: float


class Collector:
    """One store's passes, one at a time."""

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
        self._references = published.catalog.references
        self._uploads = uploads
        self._ledger = ledger
        self._ownership = ownership
        self._options = options
        self._rounds = Rounds(options.unreferenced_grace_s, options.max_elapsed_s, clock)
        self._turn = threading.Lock()

    def run(self, *, full: bool = False) -> list[Removal]:
        """One pass; returns what was removed. A `full` one looks at everything, as passes do now and then.

        Raises StoreUnavailableError and CatalogDamagedError, and then nothing more is removed; a full one raises the
        first while a backup is taken, where others are put off.
        """
        with self._turn, removing(self._ownership.data_dir) as is_free:
            if not is_free:
                self._rounds.forget()
                if full:
                    raise backup_is_taken()
                log.info("collection_put_off", why="a backup is taken")
                return []
            removed = self._run(full=full)
            if self._objects is not None:
                removed += self._objects.run(self._published, full=full)
            return removed

    def plan(self, departed: Departed = NONE_DEPARTED, gone: Set[BlobKey] = frozenset()) -> list[Removal]:
        """Everything that a full pass would find now, and what stays for now; nothing is changed.

        `departed` and `gone` are versions and blobs that are taken for removed before it.
        """
        with self._turn:
            self._ownership.check(self._published.catalog.state())
            expired = self._references.expired()
            departed = Departed(departed.adapters | {each.id for each in expired}, departed.versions)
            look = self._look(self._rounds.next(full=True), departed, gone)
            removals = of_adapters(expired, time.time()) + look.removals
            if self._objects is None:
                return removals
            found = self._objects.plan(self._published, departed, gone)
            copies = self._published.blobs.index.sizes_among(map(_key, found))
            return with_copies(removals + found, copies)

    def close(self) -> None:
        """Note how far the catalog is, so that an earlier copy of it is known as one at the next start."""
        try:
            if self._objects is not None:
                self._objects.close()
            self._ledger.save(self._ownership.check(self._published.catalog.state()).num_changes)
        except (HotslotError, OSError) as exc:
            log.warning("removal_note_not_written", why=str(exc))

    def _run(self, *, full: bool) -> list[Removal]:
        now, began_s = self._rounds.begin(full=full)
        state = self._ownership.check(self._published.catalog.state())
        expired = self._references.expired()
        if expired:
            self._published.catalog.purge()
        if now.is_full:
            self._published.blobs.index.take_entered()  # they are looked at with everything
        look = self._look(now, NONE_DEPARTED, frozenset())
        self._ledger.blobs, self._ledger.uploads = look.blobs, look.uploads
        self._ledger.save(state.num_changes)
        due = [removal for removal in look.removals if not removal.wait_s]
        if due:
            # The rows that were read in between were this catalog's, too.
            self._ownership.check(self._published.catalog.state())
        blobs = [removal for removal in due if removal.kind is RemovalKind.BLOB]
        removed = [removal for removal in blobs if self._published.remove_local(_key(removal))]
        for removal in removed:
            # What comes in its place waits anew, for the whole grace.
            self._ledger.blobs.forget(text_of_key(_key(removal)))
        if removed:
            self._ledger.save(state.num_changes)
        removed += self._remove_uploads([removal for removal in due if removal.kind is RemovalKind.UPLOAD])
        self._references.forget_dropped()
        self._rounds.end(now, began_s, look.until_s)
        return of_adapters(expired, time.time()) + removed

    def _look(self, now: CollectionRound, departed: Departed, gone: Set[BlobKey]) -> _Look:
        index = self._published.blobs.index
        if now.is_full:
            until_s = self._references.now_s()
            sizes = index.local_sizes()
            unreferenced = (sizes.keys() - gone) - self._references.all(departed)
        else:
            dropped = self._references.dropped_since(now.since_s)
            until_s = dropped.until_s
            waiting = map(key_of_text, self._ledger.blobs.all())
            sizes = index.sizes_among({*waiting, *dropped.keys, *index.take_entered()})
            unreferenced = sizes.keys() - self._references.among(sizes, departed)
        condemned = self._published.condemned(unreferenced)
        blobs = self._ledger.blobs.after({text_of_key(key): "" for key in unreferenced}, now.elapsed_s)
        found = self._uploads.found()
        uploads = self._ledger.uploads.after({name: each.mark for name, each in found.items()}, now.elapsed_s)
        removals = of_blobs(unreferenced, sizes, blobs, self._options.unreferenced_grace_s, condemned)
        removals += of_uploads(found, uploads, self._options.upload_ttl_s, time.time())
        return _Look(removals, blobs, uploads, until_s)

    def _remove_uploads(self, due: list[Removal]) -> list[Removal]:
        by_name = {removal.name: removal for removal in due}
        removed: list[str] = []
        self._uploads.collect(
            older_than_s=self._options.upload_ttl_s, is_due=by_name.__contains__, on_removed=removed.append
        )
        return [by_name[name] for name in removed]


def _key(removal: Removal) -> BlobKey:
    return key_of_text(f"{removal.tenant} {removal.digest}")
