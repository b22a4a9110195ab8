"""What happens to blobs without anybody asking: the budget is kept, object storage completed, the disk scrubbed."""

import asyncio

import structlog

from hotslot.errors import HotslotError
from store_service.content.scrub import Scrub
from store_service.content.stats import BlobStats
from store_service.content.store import CachedBlobStore
from store_service.execution.offload import Offload

log = structlog.get_logger(__name__)


async def keep_for_ever(blobs: CachedBlobStore, stats: BlobStats, offload: Offload, every_s: float) -> None:
    """Every so often: evict what does not fit, and store what object storage lacks; for ever."""
    while True:
        await asyncio.sleep(every_s)
        try:
            num_stored = await offload(blobs.store_missing_objects)
            fits = await offload(blobs.trim)
            await offload(blobs.save_use_times)
        except (HotslotError, OSError) as exc:
            log.warning("keeping blobs failed, and is tried again", error=str(exc))
            continue
        if not fits:
            log.warning("blobs exceed blob_cache_bytes, and none more can be evicted", **stats.all())
        elif num_stored:
            log.info("blobs stored in object storage", num_blobs=num_stored)


async def scrub_for_ever(scrub: Scrub, every_s: float) -> None:
    """A pass every so often, for ever."""
    while True:
        await asyncio.sleep(scrub.due_in_s(every_s))
        try:
            await scrub.run()
        except (HotslotError, OSError) as exc:
            log.warning("scrubbing failed, and is tried again", error=str(exc))
            await asyncio.sleep(min(every_s, 60.0))
