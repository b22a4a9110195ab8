"""Opens published blobs wherever they are: one that is not on the disk, or rotten there, is brought back first."""

import threading
from typing import BinaryIO

import structlog

from hotslot.content_files import digest_of_file
from hotslot.errors import BlobNotFoundError, HotslotError, StoreUnavailableError
from hotslot.ids import Digest, TenantId
from hotslot.single_flight import SingleFlight
from shared.metrics.numbers import Tally
from store_service.content.keys import BlobKey
from store_service.content.origins import Origins
from store_service.content.published import PublishedBlobs
from store_service.execution.offload import Offload

log = structlog.get_logger(__name__)

NUM_OPENS = 3
"""Most evictions of a blob between being restored and being opened."""


class Recovery:
    """Restores a bounded number of blobs at a time, each once for all who want it. Lives on the event loop."""

    def __init__(
        self,
        published: PublishedBlobs,
        origins: Origins,
        offload: Offload,
        *,
        max_restores: int,
    ) -> None:
        self._published = published
        self._blobs = published.blobs
        self._origins = origins
        self._offload = offload
        self._restoring = Offload("restore", max_restores)
        self._cancelled = threading.Event()
        self._restores: SingleFlight[BlobKey, None] = SingleFlight()
        self.opens = Tally("hotslot_blob_opens_total", [("hit",), ("miss",)])

    async def open(self, tenant: TenantId, digest: Digest, *, announced: bool = False) -> tuple[BinaryIO, int, BlobKey]:
        """A blob for reading, as `PublishedBlobs.open`, its size, and the key under which its owner's is kept.

        Raises BlobNotFoundError, BlobLostError, StoreUnavailableError, SourceUnavailableError, QuotaExceededError.
        """
        for attempt in range(NUM_OPENS):
            opened = await self._offload(self._published.open, tenant, digest, announced=announced)
            if not attempt:
                self.opens.add("miss" if opened.file is None else "hit")
            if opened.file is not None:
                return opened.file, opened.size_bytes, opened.key
            self._blobs.keep(*opened.key)
            await self.make_whole(opened.key)
        raise StoreUnavailableError(f"blob {digest} leaves the disk faster than it is read; try again", retry_after_s=1)

    async def make_whole(self, key: BlobKey) -> None:
        """See that a blob is on the disk with the right bytes; goes on when the caller is cancelled. As `open`."""
        await self._restores.run(key, lambda: self._make_whole(key))

    async def _make_whole(self, key: BlobKey) -> None:
        try:
            await self._restoring(self._make_whole_on_thread, key)
        except (HotslotError, OSError) as exc:
            log.warning("blob_not_made_whole", tenant=key[0], digest=key[1], why=str(exc))
            raise

    def _make_whole_on_thread(self, key: BlobKey) -> None:
        if self._is_whole(key):
            return
        try:
            self._origins.restore(key, self._cancelled)
        except HotslotError:
            self._blobs.index.count(num_failed_restores=1)
            raise
        self._blobs.index.count(num_restored=1)

    def _is_whole(self, key: BlobKey) -> bool:
        """Tell if the disk has the right bytes; wrong ones are put aside."""
        try:
            file = self._blobs.open_unused(key)
        except BlobNotFoundError:
            return False
        with file:
            if digest_of_file(file) == key[1]:
                return True
            log.error("blob_rotten", tenant=key[0], digest=key[1])
            self._blobs.index.count(num_rotten=1)
            # One that was published again meanwhile was verified when it was.
            return not self._blobs.quarantine(key, file)

    async def close(self) -> None:
        """Stop what is being restored."""
        self._cancelled.set()
        await self._restores.settled()
        self._restoring.close()
