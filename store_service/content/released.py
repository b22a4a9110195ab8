"""Removes the blobs of versions that retention removed: the catalog itself says that they are not wanted.

Other blobs that nothing refers to wait for a day (`collection`), since absence alone may be the catalog's loss.
"""

from store_service.catalog.pruning import VersionRetention
from store_service.content.hold import removing
from store_service.content.object_collection import ObjectCollection
from store_service.content.ownership import Ownership
from store_service.content.published import PublishedBlobs


class ReleasedBlobs:
    """Released blobs of one store. Everything here blocks: call it from a thread."""

    def __init__(
        self,
        published: PublishedBlobs,
        retention: VersionRetention,
        ownership: Ownership,
        objects: ObjectCollection | None = None,
    ) -> None:
        """`objects` says whether this store of several may remove any."""
        self._published = published
        self._retention = retention
        self._ownership = ownership
        self._objects = objects

    def remove(self) -> int:
        """Remove them, and return how many went; those that a version has again stay.

        Raises StoreUnavailableError and CatalogDamagedError. While a backup is taken, or another store of the
        catalog removes, nothing is removed here.
        """
        with removing(self._ownership.data_dir) as is_free:
            released = self._retention.released() if is_free else []
            if not released or (self._objects is not None and not self._objects.may_remove()):
                return 0
            self._ownership.check(self._published.catalog.state())
            num_removed = sum(self._published.remove_unreferenced((each.tenant, each.digest)) for each in released)
            self._retention.settle(released)
            return num_removed
