"""Published blobs as a catalog refers to them: opened whole, and removed only when no version refers to them.

Everything here blocks: call it from a thread.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from hotslot.errors import BlobNotFoundError
from hotslot.ids import Digest, TenantId
from store_service.catalog.catalog import Catalog
from store_service.content.keys import BlobKey
from store_service.content.store import ContentStore


class PublishedBlobs:
    """A store's blobs with its catalog."""

    def __init__(self, catalog: Catalog, blobs: ContentStore) -> None:
        self.catalog = catalog
        self.blobs = blobs
        # Blobs between their publication and the catalog's reference to them: no collection comes between.
        self._publishing: Counter[BlobKey] = Counter()
        self._collecting = threading.Lock()

    def open(self, tenant: TenantId, digest: Digest) -> tuple[BinaryIO, int] | None:
        """A published blob for reading, and its size; None where it is not, or not whole, on this machine.

        Raises BlobNotFoundError, also for what was only uploaded.
        """
        size_bytes = self.catalog.weights_size_bytes(tenant, digest)
        if size_bytes is None:
            raise BlobNotFoundError(digest)
        try:
            file, found_bytes = self.blobs.open(tenant, digest)
        except BlobNotFoundError:
            return None
        if found_bytes != size_bytes:
            file.close()
            return None
        return file, size_bytes

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
