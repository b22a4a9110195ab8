"""Published blobs as a catalog refers to them: opened whole, and removed only when no version refers to them.

Everything here blocks: call it from a thread.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from hotslot.errors import BlobNotFoundError
from hotslot.ids import Digest, TenantId
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


class PublishedBlobs:
    """A store's blobs with its catalog."""

    def __init__(self, catalog: Catalog, blobs: ContentStore) -> None:
        self.catalog = catalog
        self.blobs = blobs
        # Blobs between their publication and the catalog's reference to them: no collection comes between.
        self._publishing: Counter[BlobKey] = Counter()
        self._collecting = threading.Lock()

    def open(self, tenant: TenantId, digest: Digest) -> OpenedBlob:
        """A published blob that a tenant may read: its own, or of an adapter that is shared with it.

        Raises BlobNotFoundError, also for what was only uploaded.
        """
        found = self.catalog.readable_weights(tenant, digest)
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

    def unreferenced(self) -> set[BlobKey]:
        """Blobs that no version refers to, deleted adapters' included; some may be about to be referred to."""
        return set(self.blobs.digests()) - self.catalog.referenced_weights()

    def remove_unreferenced(self, key: BlobKey) -> bool:
        """Remove a blob for good; false, and it stays, where a version refers to it by now or is about to."""
        with self._collecting:
            if key in self._publishing or self.catalog.weights_uses(key):
                return False
            self.blobs.delete(*key)
            return True
