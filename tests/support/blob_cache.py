"""A blob cache without a catalog, for tests."""

from collections.abc import Mapping
from pathlib import Path

from store_service.blobs.cached import CachedBlobStore
from store_service.blobs.index import Retention
from store_service.blobs.leases import Leases
from store_service.blobs.local import LocalBlobStore
from store_service.blobs.objects import ObjectBlobs
from store_service.blobs.stats import BlobStats
from store_service.blobs.store import BlobKey


def cached_blobs(
    folder: Path,
    objects: ObjectBlobs | None = None,
    *,
    budget_bytes: int = 0,
    retention: Mapping[BlobKey, Retention] | None = None,
    leases: Leases | None = None,
) -> CachedBlobStore:
    """A cache in a folder; `retention` is what a catalog would say, and may change."""
    return CachedBlobStore(
        LocalBlobStore(folder),
        objects,
        leases or Leases(lease_s=0),
        BlobStats(),
        budget_bytes=budget_bytes,
        retention=lambda: retention or {},
    )
