"""A blob cache without a catalog, for tests."""

from collections.abc import Mapping
from pathlib import Path

from store_service.content.folder import BlobFolder
from store_service.content.index import Retention
from store_service.content.keys import BlobKey
from store_service.content.leases import Leases
from store_service.content.objects import ObjectBlobs
from store_service.content.store import ContentStore


def cached_blobs(
    folder: Path,
    objects: ObjectBlobs | None = None,
    *,
    budget_bytes: int = 0,
    retention: Mapping[BlobKey, Retention] | None = None,
    leases: Leases | None = None,
) -> ContentStore:
    """A cache in a folder; `retention` is what a catalog would say, and may change."""
    return ContentStore(
        BlobFolder(folder),
        objects,
        leases or Leases(lease_s=0),
        budget_bytes=budget_bytes,
        retention=lambda keys: retention or {},
    )
