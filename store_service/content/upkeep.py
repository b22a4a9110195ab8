"""Upkeep of blobs: what is not wanted goes, the budget is kept, object storage completed, the disk scrubbed."""

import asyncio

import structlog

from store_service.catalog.damaged_objects import DamagedObjects
from store_service.content.collection import Collector, counts_of
from store_service.content.published import PublishedBlobs
from store_service.content.scrub import Scrub
from store_service.execution.offload import Offload

log = structlog.get_logger(__name__)


async def collect(collector: Collector, offload: Offload) -> None:
    """Remove what nothing refers to any more."""
    removals = await offload(collector.run)
    if removals:
        log.info("collected", **counts_of(removals))


async def keep_blobs(published: PublishedBlobs, damaged: DamagedObjects, offload: Offload) -> None:
    """Store what object storage lacks, or has damaged, and evict what does not fit."""
    blobs = published.blobs
    if blobs.objects is not None:
        await offload(repair_objects, published, damaged)
    num_stored = await offload(blobs.store_missing_objects)
    fits = await offload(blobs.trim)
    await offload(blobs.save_use_times)
    if not fits:
        log.warning("blob_cache_over_budget", **blobs.index.counts())
    elif num_stored:
        log.info("blobs_stored_in_object_storage", num_blobs=num_stored)


async def scrub_for_ever(scrub: Scrub, every_s: float) -> None:
    """Scrub whenever a pass is due, for ever."""
    while True:
        await asyncio.sleep(scrub.due_in_s(every_s))
        await scrub.run()


def repair_objects(published: PublishedBlobs, damaged: DamagedObjects) -> None:
    """Store damaged objects again of which this disk has a whole copy; blocks. Raises StoreUnavailableError."""
    for key in damaged.found():
        if published.blobs.repair_object(key) or not published.catalog.references.among([key]):
            damaged.settle(*key)
