"""Published blobs: a local disk with a byte budget, and object storage below it where there is one.

A blob's file carries in its modification time when it was last used, so that the order survives a restart; it is
written by `save_use_times`, not at every read, since each write makes the next reader digest the file again.
Everything here blocks: call it from a thread, never on the event loop.
"""

import os
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import BinaryIO

import structlog

from hotslot.batches import batches
from hotslot.content_files import StagedFile, digest_of_file
from hotslot.errors import BlobNotFoundError, QuotaExceededError, StoreUnavailableError
from hotslot.ids import Digest, TenantId
from store_service.content.eviction import LocalBlob, choose_victims
from store_service.content.folder import BlobFolder
from store_service.content.index import BlobIndex, Retention
from store_service.content.keys import BlobKey
from store_service.content.leases import LeasedFile, Leases
from store_service.content.objects import ObjectBlobs
from store_service.content.verified import Verified
from store_service.content.writer import Writer

log = structlog.get_logger(__name__)

CACHE_QUOTA = "blob_cache_bytes"
BATCH_BLOBS = 200
"""Blobs that eviction looks at at once, the oldest first."""
RETRY_AFTER_S = 10.0


class ContentStore:
    """Blobs on the local disk, with at most `budget_bytes` (0: no bound), over object storage if there is any."""

    def __init__(
        self,
        folder: BlobFolder,
        objects: ObjectBlobs | None,
        leases: Leases,
        *,
        budget_bytes: int,
        retention: Callable[[Collection[BlobKey]], Mapping[BlobKey, Retention]],
        verified: Verified | None = None,
        generation_of: Callable[[BlobKey], int] = lambda key: 0,
    ) -> None:
        """Looks at everything that is stored; raises StoreUnavailableError when object storage does not answer.

        `retention` and `generation_of` are the catalog's words: about keeping some blobs, about the names of objects.
        """
        self.objects = objects
        self.generation_of = generation_of
        self.leases = leases
        self.verified = verified or Verified(0.0)
        """Hears of files that were digested as they were written: their first readers need not do it again."""
        self.index = BlobIndex(folder.found(), objects.keys() if objects is not None else set())
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._retention = retention
        # One decision at a time.
        self._evicting = threading.Lock()

    def writer(self, tenant: TenantId, *, is_new: bool = True) -> Writer:
        """Begin a blob, or, where it is not new, to bring back one that object storage may have already."""
        reservation = _Reservation(self)

        def take_in(staged: StagedFile, digest: Digest) -> None:
            key, size_bytes = (tenant, digest), staged.size_bytes
            with self.leases.holding(key):
                self._folder.take_in(staged, key)
                with self._folder.open(key) as file:
                    self.verified.add(file)
                self.index.enter(key, size_bytes)
                reservation.release()
                if is_new:
                    self.store_object(key)

        return Writer(
            self._folder.new_stage(),
            "blob",
            take_in,
            on_reserve=reservation.add,
            on_close=reservation.release,
        )

    def open(self, tenant: TenantId, digest: Digest) -> tuple[BinaryIO, int]:
        """A blob's bytes and their number, leased until closed; raises BlobNotFoundError for one not on the disk."""
        key = tenant, digest
        try:
            file = LeasedFile(self._folder.path(key), self.leases, key)
        except FileNotFoundError as exc:
            raise BlobNotFoundError(digest) from exc
        self.index.use(key)
        return file, os.fstat(file.fileno()).st_size

    def open_unused(self, key: BlobKey) -> BinaryIO:
        """A blob's bytes for upkeep: neither a lease nor a use. Raises BlobNotFoundError."""
        return self._folder.open(key)

    def contains(self, tenant: TenantId, digest: Digest) -> bool:
        """Tell if a blob is on the local disk."""
        return self._folder.path((tenant, digest)).is_file()

    def keep(self, tenant: TenantId, digest: Digest) -> None:
        """Hold a blob that is about to be read: not evicted for a while."""
        self.leases.extend((tenant, digest))

    def delete(self, tenant: TenantId, digest: Digest) -> None:
        """Remove a blob from object storage and the disk; harmless when it is not there, and readers can finish.

        Raises StoreUnavailableError.
        """
        key = tenant, digest
        if self.objects is not None:
            self.delete_object(key, self.generation_of(key))
        self.delete_local(key)

    def delete_local(self, key: BlobKey) -> None:
        """Remove a blob from the disk alone; harmless when it is not there, and readers can finish."""
        self._folder.delete(key)
        self.index.leave(key)

    def delete_object(self, key: BlobKey, generation: int) -> None:
        """Remove a blob's object of one name; raises StoreUnavailableError."""
        assert self.objects is not None, "nothing is deleted where there is no object storage"
        self.objects.delete(key, generation)
        if generation == self.generation_of(key):
            self.index.note_stored(key, is_stored=False)

    def digests(self) -> list[BlobKey]:
        """All blobs, on the disk or in object storage."""
        return self.index.all()

    def reserve(self, size_bytes: int) -> None:
        """Evict until so many more bytes fit; raises QuotaExceededError, and evicts nothing, when they cannot."""
        if not self._budget_bytes:
            self.index.reserve(size_bytes)
            return
        with self._evicting:
            if not self._make_room(size_bytes, only_if_enough=True):
                raise QuotaExceededError(
                    f"the store's blobs take {self.index.used_bytes()} of the {self._budget_bytes} bytes of "
                    f"blob_cache_bytes, and too few can be evicted for {size_bytes} more: the others are pinned, in "
                    "use, or exist nowhere else (uploads and folders, without blob_url); raise blob_cache_bytes, set "
                    "blob_url, or delete adapters, whose blobs go after delete_grace_s and unreferenced_grace_s",
                    subject=CACHE_QUOTA,
                    retry_after_s=RETRY_AFTER_S,
                )
            self.index.reserve(size_bytes)

    def trim(self) -> bool:
        """Evict what does not fit into the budget; false where more would have to go than can."""
        with self._evicting:
            return not self._budget_bytes or self._make_room(0, only_if_enough=False)

    def quarantine(self, key: BlobKey, rotten: BinaryIO) -> bool:
        """Put a rotten file aside, unless another has taken its place already."""
        if not self._folder.quarantine(key, rotten):
            return False
        self.index.leave(key)
        return True

    def store_object(self, key: BlobKey) -> None:
        """Copy a blob from the local disk to object storage, if there is any; raises StoreUnavailableError."""
        if self.objects is not None:
            self.objects.put(key, self._folder.path(key), self.generation_of(key))
            self.index.note_stored(key, is_stored=True)

    def require_object(self, key: BlobKey) -> None:
        """See that object storage, if there is any, has a blob of the local disk; raises StoreUnavailableError."""
        with self.leases.holding(key):
            if self.objects is not None and self.objects.size_bytes(key, self.generation_of(key)) is None:
                self.store_object(key)

    def store_missing_objects(self) -> int:
        """Copy what object storage lacks, for example from before there was one; returns how many blobs went."""
        num_stored = 0
        for key in self.index.not_stored() if self.objects is not None else []:
            # Deleted or evicted meanwhile is as good.
            with self.leases.holding(key), suppress(BlobNotFoundError), self.open_unused(key) as file:
                if digest_of_file(file) == key[1]:
                    self.store_object(key)
                    num_stored += 1
        return num_stored

    def repair_object(self, key: BlobKey) -> bool:
        """Store a blob again whose object is damaged; false where this disk has no whole copy."""
        with self.leases.holding(key), suppress(BlobNotFoundError), self.open_unused(key) as file:
            if digest_of_file(file) == key[1]:
                self.store_object(key)
                log.info("object_repaired", tenant=key[0], digest=key[1])
                return True
        return False

    def save_use_times(self) -> None:
        """Write down when each blob was last used."""
        for key, last_used_s in self.index.take_unsaved():
            with suppress(FileNotFoundError):
                os.utime(self._folder.path(key), (last_used_s, last_used_s))

    def _make_room(self, needed_bytes: int, *, only_if_enough: bool) -> bool:
        room_bytes = self._budget_bytes - needed_bytes
        if self.index.used_bytes() <= room_bytes:
            return True
        room_bytes -= self.index.reserved_bytes()
        unseen_bytes = sum(self.index.local_sizes().values())
        oldest = batches(self.index.oldest_first(), BATCH_BLOBS)
        leased = self.leases.leased()
        blobs: dict[BlobKey, LocalBlob] = {}
        while True:
            eviction = choose_victims(blobs.values(), room_bytes - unseen_bytes)
            some = None if eviction.fits else next(oldest, None)
            if not eviction.fits and some is None and unseen_bytes:
                unseen_bytes = 0  # What was counted and is in no batch has been removed meanwhile.
                continue
            if some is not None:
                # The catalog is asked about the oldest ones alone, as far as that is needed.
                found = self.index.local_blobs(some, self._retention(some), leased)
                unseen_bytes -= sum(blob.size_bytes for blob in found)
                blobs.update((blob.key, blob) for blob in found)
                continue
            if not eviction.victims or (only_if_enough and not eviction.fits):
                return eviction.fits
            # Any of them may be refused, which changes the choice.
            for victim in eviction.victims:
                if self._evict(victim):
                    del blobs[victim.key]
                else:
                    blobs[victim.key] = replace(victim, is_leased=True)
                    break

    def _evict(self, victim: LocalBlob) -> bool:
        """Remove a blob from the disk; false, and it stays, when it is in use by now, or object storage lost it."""
        if self.index.is_stored(victim.key) and not self._is_stored(victim):
            return False
        with self.leases.excluded(victim.key) as is_free:
            if not is_free:
                return False
            self._folder.delete(victim.key)
            self.index.leave(victim.key)
        self.index.count(num_evicted=1, evicted_bytes=victim.size_bytes)
        log.info("blob_evicted", tenant=victim.key[0], digest=victim.key[1], size_bytes=victim.size_bytes)
        return True

    def _is_stored(self, blob: LocalBlob) -> bool:
        assert self.objects is not None, "nothing is known to be stored without object storage"
        tenant, digest = blob.key
        try:
            found_bytes = self.objects.size_bytes(blob.key, self.generation_of(blob.key))
        except StoreUnavailableError as exc:
            log.warning("eviction_put_off", digest=digest, why=exc.message)
            return False
        if found_bytes != blob.size_bytes:
            log.error("blob_lost_in_object_storage", tenant=tenant, digest=digest)
            self.index.note_stored(blob.key, is_stored=False)
        return found_bytes == blob.size_bytes


class _Reservation:
    """Part of a budget that one writer has taken before it writes."""

    def __init__(self, blobs: ContentStore) -> None:
        self._blobs = blobs
        self._size_bytes = 0

    def add(self, size_bytes: int) -> None:
        self._blobs.reserve(size_bytes)
        self._size_bytes += size_bytes

    def release(self) -> None:
        self._blobs.index.reserve(-self._size_bytes)
        self._size_bytes = 0
