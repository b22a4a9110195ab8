"""Metrics of the store: what its parts counted, its blobs and the room on its disk."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from shared.metrics.endpoint import Observation, observed
from shared.metrics.exposition import Readings
from shared.metrics.numbers import Measured
from shared.metrics.table import STORE
from store_service.content.store import ContentStore
from store_service.settings import StoreSettings

BLOB_COUNTS = {
    "hotslot_blob_restores_total": (("num_restored", ("ok",)), ("num_failed_restores", ("failed",))),
    "hotslot_blob_evictions_total": (("num_evicted", ()),),
    "hotslot_blob_evicted_bytes_total": (("evicted_bytes", ()),),
    "hotslot_blobs_quarantined_total": (("num_rotten", ()),),
}
"""Counts of the index of blobs, by metric and labels."""


@asynccontextmanager
async def served_metrics(
    settings: StoreSettings, blobs: ContentStore, sources: list[Readings]
) -> AsyncIterator[Observation]:
    """The metrics of a store over HTTP, until the block is left, where its settings want that."""
    sources.append(lambda: blob_readings(blobs, settings.data_dir, settings.blob_cache_bytes))
    async with observed(STORE, settings, settings.transport(), sources) as metrics:
        yield metrics


def blob_readings(blobs: ContentStore, data_dir: Path, limit_bytes: int) -> Iterator[Measured]:
    """Blobs and the disk now."""
    index = blobs.index
    yield Measured("hotslot_blobs", index.num_local())
    yield Measured("hotslot_blob_disk_bytes", index.used_bytes())
    yield Measured("hotslot_blob_limit_bytes", limit_bytes)
    yield Measured("hotslot_disk_free_bytes", shutil.disk_usage(data_dir).free)
    counts = index.counts()
    for name, parts in BLOB_COUNTS.items():
        for count, labels in parts:
            yield Measured(name, counts.get(count, 0), labels)
