"""The disk between host memory and the store: reads come from it where it can answer, and what was fetched is kept.

It is never needed: whatever the disk does, a blob comes from the store instead.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from hotslot.ids import Digest, TenantId
from worker_service.adapters.disk_files import DiskFiles
from worker_service.adapters.loader import BlobReader

log = structlog.get_logger(__name__)

MAX_PENDING_WRITES = 4
"""Blobs that are held in memory while they are written; while there are so many, further ones are not kept."""


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """Folder of the disk tier, and its budget."""

    folder: Path
    budget_bytes: int


@dataclass(slots=True)
class DiskTier:
    """A BlobReader in front of another. Belongs to one event loop.

    Blobs are shared between tenants by digest, as host memory is: a tenant learned the digest from the store.
    """

    source: BlobReader
    files: DiskFiles
    _known: set[Digest] = field(default_factory=set)
    """Blobs that were on the disk when this worker last looked; other workers may have made room since."""
    _writes: "set[asyncio.Task[None]]" = field(default_factory=set)

    def has(self, digest: Digest) -> bool:
        """Tell whether a blob was on the disk lately; it may be gone, and is verified only when it is read."""
        return digest in self._known

    async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> bytes | bytearray | memoryview:
        """All bytes of a blob, verified; raises what the source does."""
        try:
            found = await asyncio.to_thread(self.files.read, digest, size_bytes)
        except OSError as exc:
            log.warning("disk_read_failed", digest=digest, why=str(exc))
            found = None
        if found is not None:
            self._known.add(digest)
            return found
        self._known.discard(digest)
        blob = await self.source.read_blob(tenant, digest, size_bytes)
        if len(self._writes) < MAX_PENDING_WRITES:
            task = asyncio.create_task(self._keep(digest, blob), name=f"keep {digest}")
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)
        return blob

    async def drop(self, digest: Digest) -> None:
        """Remove a blob, for all workers that share the folder."""
        await self.settled()
        self._known.discard(digest)
        try:
            await asyncio.to_thread(self.files.remove, digest)
        except OSError as exc:
            log.warning("disk_remove_failed", digest=digest, why=str(exc))

    async def settled(self) -> None:
        """Wait for the writes under way."""
        if self._writes:
            await asyncio.wait(self._writes)

    async def _keep(self, digest: Digest, blob: bytes | bytearray | memoryview) -> None:
        try:
            if not await asyncio.to_thread(self.files.write, digest, blob):
                log.warning("disk_cache_too_small", digest=digest, size_bytes=len(blob))
            self._known = set(await asyncio.to_thread(self.files.digests))
        except OSError as exc:
            log.warning("disk_write_failed", digest=digest, why=str(exc))


def open_disk_tier(options: DiskOptions, source: BlobReader) -> DiskTier | None:
    """The tier, or None, with a warning, when its folder cannot be used. Blocks."""
    try:
        files = DiskFiles(options.folder, options.budget_bytes)
        known = set(files.digests())
    except OSError as exc:
        log.warning("disk_cache_not_used", folder=str(options.folder), why=str(exc))
        return None
    return DiskTier(source, files, known)
