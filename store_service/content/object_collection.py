"""Removes from object storage what nothing refers to: one store of several at a time, by a lease in the catalog.

Two that do it at once remove nothing that is wanted (`store_service.catalog.blob_claims`); the lease saves the
work. Everything here blocks: call it from a thread.
"""

import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from hotslot.contract.garbage import Removal, RemovalKind, RemovalReason
from store_service.catalog.blob_claims import BlobClaims
from store_service.catalog.leases import CatalogLeases
from store_service.catalog.references import NONE_DEPARTED, Departed
from store_service.content.garbage import of_objects, of_uploads, with_copies
from store_service.content.keys import BlobKey, key_of_text, object_key, text_of_key
from store_service.content.objects import ObjectBlobs
from store_service.content.ownership import Ownership
from store_service.content.published import PublishedBlobs
from store_service.content.rounds import CollectionRound, Rounds
from store_service.content.upload_parts import UploadParts
from store_service.content.waiting import CollectionOptions, Ledger, Note, Waiting

REMOVAL = "removal of blobs"
"""Lease of the store that removes objects."""
LEAST_LEASE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at object storage."""

    removals: list[Removal]
    blobs: Waiting
    uploads: Waiting
    found: dict[BlobKey, dict[int, int]]
    """Objects of the blobs that wait, with their sizes by generation."""
    until_s: float


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
        self._rounds = Rounds(options.unreferenced_grace_s, options.max_elapsed_s, clock)
        self._ledger: Ledger | None = None
        """None while another store has the lease, and writes the note."""
        self._known: dict[BlobKey, dict[int, int]] = {}
        """Objects of the blobs that wait, with their sizes by generation."""

    def may_remove(self) -> bool:
        """Take or renew the lease; false while another store has it."""
        if self._leases.take(REMOVAL, max(LEAST_LEASE_S, 2 * self._options.max_elapsed_s)):
            return True
        self._ledger = None
        return False

    def is_elsewhere(self) -> bool:
        """Tell if another store has the lease; it is neither taken nor renewed."""
        return any(each.is_held and each.holder != self._leases.holder for each in self._leases.found(REMOVAL))

    def stored_among(self, keys: Iterable[BlobKey]) -> dict[BlobKey, tuple[int, int]]:
        """Those of the blobs that have an object of their present generation, with that and its size."""
        keys = list(keys)
        generations = self._claims.generations_among(keys)
        sizes = {key: self._objects.size_bytes(key, generations.get(key, 0)) for key in keys}
        return {key: (generations.get(key, 0), size) for key, size in sizes.items() if size is not None}

    def run(self, published: PublishedBlobs, *, full: bool = False) -> list[Removal]:
        """One pass; returns what went. Raises StoreUnavailableError and CatalogDamagedError."""
        if not self.may_remove():
            self._rounds.forget()
            return []
        state = self._ownership.check(published.catalog.state())
        if self._ledger is None:
            self._ledger = Ledger(self._note, state)
            self._rounds.forget()
        now, began_s = self._rounds.begin(full=full)
        look = self._look(published, self._ledger, now, NONE_DEPARTED, frozenset())
        self._ledger.blobs, self._ledger.uploads, self._known = look.blobs, look.uploads, look.found
        self._ledger.save(state.num_changes)
        due = [removal for removal in look.removals if not removal.wait_s]
        due_blobs = {key_of_text(name) for name in look.blobs.due(self._options.unreferenced_grace_s)}
        if due or due_blobs:
            # The rows that were read in between were this catalog's, too.
            self._ownership.check(published.catalog.state())
        copies = published.blobs.index.sizes_among(due_blobs)
        gone = {key for key in sorted(due_blobs) if published.remove_unreferenced(key)}
        removed = [each for each in due if self._is_removed(published, each, gone)]
        self._forget(self._ledger, gone, removed)
        if gone:
            self._ledger.save(state.num_changes)
        removed = with_copies(removed, copies)
        self._claims.purge()
        self._leases.clear()
        self._rounds.end(now, began_s, look.until_s)
        return removed

    def plan(self, published: PublishedBlobs, departed: Departed, gone: Set[BlobKey]) -> list[Removal]:
        """Removals of a full pass now, and what stays for now; nothing is changed.

        Where another store has the lease, it is that one's next pass, by what it wrote down at its last.
        """
        state = self._ownership.check(published.catalog.state())
        ledger, now = self._ledger, self._rounds.next(full=True)
        if ledger is None or self.is_elsewhere():
            ledger, now = Ledger(self._note, state), CollectionRound(0.0, True, 0.0)
        look = self._look(published, ledger, now, departed, gone)
        due = {(removal.tenant, removal.digest) for removal in look.removals if not removal.wait_s}
        held = published.held({key_of_text(f"{tenant} {digest}") for tenant, digest in due if digest})
        return [
            removal
            for removal in look.removals
            if removal.wait_s or (removal.tenant, removal.digest) not in held or _is_interrupted(removal)
        ]

    def _is_removed(self, published: PublishedBlobs, removal: Removal, gone: Set[BlobKey]) -> bool:
        """Remove what is no blob of the present generation; true where it, or its blob, has gone."""
        if removal.kind is RemovalKind.UPLOAD:
            self._parts.remove(removal.name)
            return True
        key, generation = _object_of(removal)
        if _is_interrupted(removal):
            published.blobs.delete_object(key, generation)
            return True
        return key in gone

    def _forget(self, ledger: Ledger, gone: Set[BlobKey], removed: Iterable[Removal]) -> None:
        """Let what went wait no more: what is put in its place waits anew, for the whole grace."""
        for key in gone:
            ledger.blobs.forget(text_of_key(key))
            self._known.pop(key, None)
        for removal in filter(_is_interrupted, removed):
            key, generation = _object_of(removal)
            if (sizes := self._known.get(key)) is not None:
                sizes.pop(generation, None)
                if not sizes:
                    del self._known[key]

    def _look(
        self, published: PublishedBlobs, ledger: Ledger, now: CollectionRound, departed: Departed, gone: Set[BlobKey]
    ) -> _Look:
        references, index = published.catalog.references, published.blobs.index
        if now.is_full:
            until_s, known = references.now_s(), index.stored()
            # In this order: a blob that was listed and removed since has a new generation, and one that was listed and
            # published since is referred to.
            found, generations = self._objects.found(), self._claims.generations()
            unreferenced = (found.keys() - gone) - references.all(departed)
            current = {key for key, sizes in found.items() if generations.get(key, 0) in sizes}
            index.replace_stored(current, known)
            found = {key: sizes for key, sizes in found.items() if key not in gone}
        else:
            dropped = references.dropped_since(now.since_s)
            until_s = dropped.until_s
            suspects = {*map(key_of_text, ledger.blobs.all()), *dropped.keys}
            unreferenced = suspects - references.among(suspects, departed)
            found = self._found_among(unreferenced)
            generations = self._claims.generations_among(found)
            unreferenced = unreferenced & found.keys()
        blobs = ledger.blobs.after({text_of_key(key): "" for key in unreferenced}, now.elapsed_s)
        parts = self._parts.found()
        uploads = ledger.uploads.after({name: each.mark for name, each in parts.items()}, now.elapsed_s)
        removals = of_objects(found, generations, unreferenced, blobs, self._options.unreferenced_grace_s)
        removals += of_uploads(parts, uploads, self._options.upload_ttl_s, time.time())
        return _Look(removals, blobs, uploads, {key: found[key] for key in unreferenced}, until_s)

    def _found_among(self, keys: Set[BlobKey]) -> dict[BlobKey, dict[int, int]]:
        """Objects of blobs; those that waited before are known from then."""
        found = {key: self._known[key] for key in keys if key in self._known}
        for key, (generation, size_bytes) in self.stored_among(keys - found.keys()).items():
            found[key] = {generation: size_bytes}
        return found

    def close(self) -> None:
        """Leave it to another store."""
        self._leases.give_back(REMOVAL)


def _object_of(removal: Removal) -> tuple[BlobKey, int]:
    found = object_key(removal.name)
    assert found is not None, "names come from the listing"
    return found


def _is_interrupted(removal: Removal) -> bool:
    return removal.reason is RemovalReason.INTERRUPTED
