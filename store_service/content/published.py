"""Published blobs as a catalog refers to them: opened whole, and removed only when no version refers to them.

Everything here blocks: call it from a thread.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hotslot.errors import BlobNotFoundError, HotslotError
from hotslot.ids import Digest, TenantId
from store_service.catalog.blob_claims import BlobClaim, BlobClaims
from store_service.catalog.catalog import Catalog
from store_service.content.keys import BlobKey
from store_service.content.store import ContentStore


@dataclass(frozen=True, slots=True)
class OpenedBlob:
    """A published blob, opened for reading."""

    key: BlobKey
    """Key under which its owner's is kept."""
    size_bytes: int
    file: BinaryIO | None = None
    """None where it is not, or not whole, on this machine."""


@dataclass(frozen=True, slots=True, eq=False)
class _Coming:
    """A staged blob whose publication is under way."""

    path: Path
    size_bytes: int


class PublishedBlobs:
    """A store's blobs with its catalog."""

    def __init__(self, catalog: Catalog, blobs: ContentStore, claims: BlobClaims | None = None) -> None:
        """`claims` are for blobs in object storage, which other stores may publish and remove as well."""
        self.catalog = catalog
        self.blobs = blobs
        self._claims = claims if blobs.objects is not None else None
        # Blobs between their publication and the catalog's reference to them: no collection comes between.
        self._publishing: Counter[BlobKey] = Counter()
        self._collecting = threading.Lock()
        self._coming: dict[BlobKey, list[_Coming]] = {}

    def open(self, tenant: TenantId, digest: Digest, *, announced: bool = False) -> OpenedBlob:
        """A published blob that a tenant may read: its own, or of an adapter that is shared with it.

        One of its own that was `announced` is read while it is published, too. Raises BlobNotFoundError, also for what
        was only uploaded.
        """
        found = self.catalog.readable_weights(tenant, digest)
        if found is None and announced:
            coming = self._open_coming((tenant, digest))
            if coming is not None:
                return coming
            found = self.catalog.readable_weights(tenant, digest)  # it may have been published in this moment
        if found is None:
            raise BlobNotFoundError(digest)
        owner, size_bytes = found
        try:
            file, found_bytes = self.blobs.open(owner, digest)
        except BlobNotFoundError:
            return OpenedBlob((owner, digest), size_bytes)
        if found_bytes != size_bytes:
            file.close()
            return OpenedBlob((owner, digest), size_bytes)
        return OpenedBlob((owner, digest), size_bytes, file)

    @contextmanager
    def publishing(self, key: BlobKey) -> Iterator[None]:
        """Keep a blob from being removed until the block ends, in which the catalog comes to refer to it."""
        with self._collecting:
            self._publishing[key] += 1
        try:
            yield
        finally:
            with self._collecting:
                self._publishing[key] -= 1
                if not self._publishing[key]:
                    del self._publishing[key]

    @contextmanager
    def coming(self, key: BlobKey, path: Path, size_bytes: int) -> Iterator[None]:
        """Let whoever was told of it read a staged blob, until the block ends, in which it is published.

        Its bytes are whole and were digested, though not durable: no version refers to them before they are.
        """
        coming = _Coming(path, size_bytes)
        with self._collecting:
            self._coming[key] = [*self._coming.get(key, ()), coming]
        try:
            yield
        finally:
            with self._collecting:
                left = [each for each in self._coming.pop(key) if each is not coming]
                if left:
                    self._coming[key] = left

    def _open_coming(self, key: BlobKey) -> OpenedBlob | None:
        for coming in self._coming.get(key, ()):
            with suppress(FileNotFoundError):
                file: BinaryIO = coming.path.open("rb", buffering=0)
                # Digested as it was written; its inode's times change while it is published.
                self.blobs.verified.add(file)
                return OpenedBlob(key, coming.size_bytes, file)
            with suppress(BlobNotFoundError):  # it has its own name already
                file, size_bytes = self.blobs.open(*key)
                return OpenedBlob(key, size_bytes, file)
        return None

    @contextmanager
    def claimed(self, key: BlobKey) -> Iterator[BlobClaim | None]:
        """Keep a blob's object from being removed by any store until the claim is given up with the version's row.

        None where there is no object storage. Raises StoreUnavailableError.
        """
        claim = self._claims.claim(key) if self._claims is not None else None
        try:
            yield claim
        except BaseException:
            if self._claims is not None and claim is not None:
                with suppress(HotslotError):  # then it is broken when it is old
                    self._claims.give_up(claim)
            raise

    def condemned(self, keys: Set[BlobKey]) -> set[BlobKey]:
        """Those of the blobs that a store has removed from object storage: their copies wait for nothing."""
        return set(self._claims.generations_among(keys)) if self._claims is not None else set()

    def held(self, keys: Set[BlobKey]) -> set[BlobKey]:
        """Those of the blobs that a publication holds now, of this store or, in object storage, of any."""
        with self._collecting:
            here = keys & self._publishing.keys()
        return here | self._claims.claimed_among(keys) if self._claims is not None else here

    def remove_unreferenced(self, key: BlobKey) -> bool:
        """Remove a blob for good; false, and it stays, where a version refers to it by now or is about to."""
        if self._claims is None:
            return self.remove_local(key)
        with self._collecting:
            if key in self._publishing:
                return False
        last = self._claims.condemn(key)
        if last is None:
            return False
        # From here on a publication stores it under another name.
        self.blobs.delete_object(key, last)
        self.remove_local(key)
        return True

    def remove_local(self, key: BlobKey) -> bool:
        """Remove a blob from the disk, whatever object storage has; false, and it stays, as `remove_unreferenced`."""
        with self._collecting:
            if key in self._publishing or self.catalog.references.among([key]):
                return False
            self.blobs.delete_local(key)
            return True
