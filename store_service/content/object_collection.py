"""Removes from object storage what nothing refers to: one store of several at a time, by a lease in the catalog.

Two that do it at once remove nothing that is wanted (`store_service.catalog.blob_claims`); the lease saves the
work. Everything here blocks: call it from a thread.
"""

import time
from collections.abc import Callable

from store_service.catalog.blob_claims import BlobClaims
from store_service.catalog.leases import CatalogLeases
from store_service.content.keys import key_of_text, text_of_key
from store_service.content.objects import ObjectBlobs
from store_service.content.ownership import Ownership
from store_service.content.published import PublishedBlobs
from store_service.content.upload_parts import UploadParts
from store_service.content.waiting import CollectionOptions, Ledger, Note

REMOVAL = "removal of blobs"
"""Lease of the store that removes objects."""
LEAST_LEASE_S = 10.0


class ObjectCollection:
    """One store's passes; not to be run twice at the same time."""

    def __init__(
        self,
        objects: ObjectBlobs,
        claims: BlobClaims,
        leases: CatalogLeases,
        note: Note,
        ownership: Ownership,
        options: CollectionOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._parts = UploadParts(objects)
        self._claims = claims
        self._leases = leases
        self._note = note
        self._ownership = ownership
        self._options = options
        self._clock = clock
        self._ledger: Ledger | None = None
        """None while another store has the lease, and writes the note."""
        self._last_s: float | None = None
        """Time of the last pass that saw everything; None where the last one did not."""

    def may_remove(self) -> bool:
        """Take or renew the lease; false while another store has it."""
        if self._leases.take(REMOVAL, max(LEAST_LEASE_S, 2 * self._options.max_elapsed_s)):
            return True
        self._ledger = None
        return False

    def run(self, published: PublishedBlobs) -> int:
        """One pass; returns how many objects went. Raises StoreUnavailableError and CatalogDamagedError."""
        last_s, self._last_s = self._last_s, None
        if not self.may_remove():
            return 0
        state = self._ownership.check(published.catalog.state())
        if self._ledger is None:
            self._ledger, last_s = Ledger(self._note, state), None
        now_s = self._clock()
        elapsed_s = min(now_s - last_s, self._options.max_elapsed_s) if last_s is not None else 0.0
        known = published.blobs.index.stored()
        # In this order: a blob that was listed and removed since has a new generation, and one that was listed and
        # published since is referred to.
        found, generations = self._objects.generations(), self._claims.generations()
        referenced = published.catalog.referenced_weights()
        current = {key for key, numbers in found.items() if generations.get(key, 0) in numbers}
        published.blobs.index.replace_stored(current, known)
        num_removed = 0
        for key in current | (found.keys() - referenced):
            for number in found[key]:
                if number < generations.get(key, 0):  # its removal was begun, and the store was stopped in between
                    published.blobs.delete_object(key, number)
                    num_removed += 1
        unreferenced = found.keys() - referenced
        self._ledger.blobs.observe({text_of_key(key): "" for key in unreferenced}, elapsed_s)
        self._ledger.uploads.observe(self._parts.marks(), elapsed_s)
        self._ledger.save(state.num_changes)
        due = self._ledger.blobs.due(self._options.unreferenced_grace_s)
        if due:
            # The rows that were read in between were this catalog's, too.
            self._ownership.check(published.catalog.state())
        num_removed += sum(published.remove_unreferenced(key_of_text(name)) for name in due)
        for name in self._ledger.uploads.due(self._options.upload_ttl_s):
            self._parts.remove(name)
        self._claims.purge()
        self._leases.clear()
        self._last_s = now_s
        return num_removed

    def close(self) -> None:
        """Leave it to another store."""
        self._leases.give_back(REMOVAL)
