"""Index of blobs: on the local disk, how large, last used when; in object storage; and counts. Thread-safe."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from store_service.content.eviction import LocalBlob
from store_service.content.folder import FoundBlob
from store_service.content.keys import BlobKey


@dataclass(frozen=True, slots=True)
class Retention:
    """Word of the catalog about keeping a blob."""

    is_pinned: bool
    has_source: bool
    """Some version of it came from a place that pins its content."""


NO_RETENTION = Retention(is_pinned=False, has_source=False)


@dataclass
class _Entry:
    size_bytes: int
    last_used_s: float
    is_saved: bool = True


class BlobIndex:
    """The bookkeeping behind `ContentStore`."""

    def __init__(self, found: Iterable[FoundBlob], stored: set[BlobKey]) -> None:
        self._local = {blob.key: _Entry(blob.size_bytes, blob.modify_time_s) for blob in found}
        self._stored = stored
        self._local_bytes = sum(entry.size_bytes for entry in self._local.values())
        self._entered: set[BlobKey] = set()
        """Blobs that came to lie on the disk since these were taken."""
        self._reserved_bytes = 0
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, key: BlobKey, size_bytes: int) -> None:
        """A blob has come to lie on the local disk."""
        with self._lock:
            before = self._local.get(key)
            self._local_bytes += size_bytes - (before.size_bytes if before is not None else 0)
            self._local[key] = _Entry(size_bytes, time.time())
            self._entered.add(key)

    def leave(self, key: BlobKey) -> None:
        """A blob is not on the local disk any more."""
        with self._lock:
            entry = self._local.pop(key, None)
            if entry is not None:
                self._local_bytes -= entry.size_bytes
            self._entered.discard(key)

    def use(self, key: BlobKey) -> None:
        """A blob is being read."""
        with self._lock:
            entry = self._local.get(key)
            if entry is not None:
                entry.last_used_s, entry.is_saved = time.time(), False

    def reserve(self, size_bytes: int) -> None:
        """Count bytes that are about to be written; negative gives them back."""
        with self._lock:
            self._reserved_bytes += size_bytes

    def num_local(self) -> int:
        """Blobs on the local disk."""
        with self._lock:
            return len(self._local)

    def used_bytes(self) -> int:
        """Bytes on the local disk, and those about to be."""
        with self._lock:
            return self._reserved_bytes + self._local_bytes

    def reserved_bytes(self) -> int:
        """Bytes that are about to be written."""
        with self._lock:
            return self._reserved_bytes

    def note_stored(self, key: BlobKey, *, is_stored: bool) -> None:
        """Object storage has a blob, or has it not."""
        with self._lock:
            (self._stored.add if is_stored else self._stored.discard)(key)

    def is_stored(self, key: BlobKey) -> bool:
        """Tell if object storage has a blob, as far as is known."""
        with self._lock:
            return key in self._stored

    def all(self) -> list[BlobKey]:
        """All blobs, wherever they are."""
        with self._lock:
            return list(self._local.keys() | self._stored)

    def local_sizes(self) -> dict[BlobKey, int]:
        """The blobs on the local disk, with their sizes."""
        with self._lock:
            return {key: entry.size_bytes for key, entry in self._local.items()}

    def sizes_among(self, keys: Iterable[BlobKey]) -> dict[BlobKey, int]:
        """Those of the blobs that are on the local disk, with their sizes."""
        with self._lock:
            return {key: self._local[key].size_bytes for key in keys if key in self._local}

    def take_entered(self) -> set[BlobKey]:
        """Blobs that came to lie on the local disk since this was asked."""
        with self._lock:
            entered, self._entered = self._entered, set()
            return entered

    def replace_stored(self, stored: set[BlobKey], since: set[BlobKey]) -> None:
        """Object storage was found to have these; blobs that came to be stored after `since` was asked for stay."""
        with self._lock:
            self._stored = stored | (self._stored - since)

    def stored(self) -> set[BlobKey]:
        """Blobs in object storage, as far as is known."""
        with self._lock:
            return set(self._stored)

    def not_stored(self) -> list[BlobKey]:
        """The blobs that only the local disk has."""
        with self._lock:
            return list(self._local.keys() - self._stored)

    def oldest_first(self) -> list[BlobKey]:
        """The blobs on the local disk, in the order of their last use."""
        with self._lock:
            return sorted(self._local, key=lambda key: self._local[key].last_used_s)

    def local_blobs(
        self, keys: Iterable[BlobKey], retention: Mapping[BlobKey, Retention], leased: set[BlobKey]
    ) -> list[LocalBlob]:
        """Those of the blobs that are on the local disk, as eviction decides upon them."""
        with self._lock:
            return [
                LocalBlob(
                    key,
                    entry.size_bytes,
                    entry.last_used_s,
                    is_pinned=(kept := retention.get(key, NO_RETENTION)).is_pinned,
                    is_leased=key in leased,
                    is_recoverable=kept.has_source or key in self._stored,
                )
                for key in keys
                if (entry := self._local.get(key)) is not None
            ]

    def take_unsaved(self) -> list[tuple[BlobKey, float]]:
        """Times of last use, of the blobs that were used since this was asked."""
        with self._lock:
            unsaved = [(key, entry) for key, entry in self._local.items() if not entry.is_saved]
            for _, entry in unsaved:
                entry.is_saved = True
            return [(key, entry.last_used_s) for key, entry in unsaved]

    def count(self, **counts: int) -> None:
        """Add to the counts of what happened to blobs since the process began, which are for the logs."""
        with self._lock:
            self._counts.update(counts)

    def counts(self) -> dict[str, int]:
        """Counts so far."""
        with self._lock:
            return dict(self._counts)
