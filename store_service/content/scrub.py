"""Reads local blobs again at a bounded rate, to find rot in blobs that are seldom read."""

import os
import threading
import time
from pathlib import Path

import structlog

from hotslot.content_files import digest_of_file
from hotslot.errors import BlobNotFoundError, HotslotError, RequestCancelledError
from store_service.content.keys import BlobKey
from store_service.content.recovery import Recovery
from store_service.content.store import ContentStore
from store_service.execution.offload import Offload

log = structlog.get_logger(__name__)


class Scrub:
    """Passes over all local blobs; `marker` carries the time of the last complete one across restarts."""

    def __init__(self, blobs: ContentStore, recovery: Recovery, marker: Path, *, max_bytes_per_s: int) -> None:
        self._blobs = blobs
        self._recovery = recovery
        self._marker = marker
        self._max_bytes_per_s = max_bytes_per_s
        self._thread = Offload("scrub", 1)
        self._stopping = threading.Event()

    def due_in_s(self, every_s: float) -> float:
        """Until the next pass should begin; at once where none was ever complete."""
        try:
            last_s = self._marker.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        return max(0.0, min(every_s, last_s + every_s - time.time()))

    async def run(self) -> int:
        """One pass; returns how many blobs were rotten. Those are put aside and, where possible, repaired."""
        num_rotten = 0
        for key in self._blobs.index.oldest_first():
            if await self._thread(self._is_whole, key):
                continue
            num_rotten += 1
            try:
                await self._recovery.make_whole(key)
                self._blobs.index.count(num_repaired=1)
            except HotslotError:
                continue  # logged where it happened
        self._marker.touch()
        log.info("blobs_scrubbed", num_rotten_now=num_rotten, **self._blobs.index.counts())
        return num_rotten

    def _is_whole(self, key: BlobKey) -> bool:
        """Also when it is not there any more: that is no rot. Raises RequestCancelledError when the store stops."""
        pace = _Pace(self._max_bytes_per_s, self._stopping)
        try:
            # Not a use: a blob that is only scrubbed stays as old as it is, and may be evicted meanwhile.
            file = self._blobs.open_unused(key)
        except BlobNotFoundError:
            return True
        with file:
            # The kernel's cache of a file says nothing about the disk.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = digest_of_file(file, pace.after)
        self._blobs.index.count(scrubbed_bytes=pace.num_bytes)
        return found == key[1]

    def close(self) -> None:
        """Stop soon, in the middle of a blob too."""
        self._stopping.set()
        self._thread.close()


class _Pace:
    """Sleeps so that no more bytes a second are read than allowed."""

    def __init__(self, max_bytes_per_s: int, stopping: threading.Event) -> None:
        self._max_bytes_per_s = max_bytes_per_s
        self._stopping = stopping
        self._begin_s = time.monotonic()
        self.num_bytes = 0

    def after(self, num_bytes: int) -> None:
        """So many more bytes were read."""
        self.num_bytes += num_bytes
        ahead_s = self.num_bytes / self._max_bytes_per_s - (time.monotonic() - self._begin_s)
        if self._stopping.wait(max(0.0, ahead_s)):
            raise RequestCancelledError("scrubbing was stopped")
