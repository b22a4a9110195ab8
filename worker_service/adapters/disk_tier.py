"""The disk between host memory and the store: reads come from it where it can answer, and what was fetched is kept.

It is never needed: whatever the disk does, a blob comes from the store instead.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from hotslot.ids import Digest, TenantId
from hotslot.tracing import span
from worker_service.adapters.disk_files import DiskFiles, disk_name
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

    Each tenant has its own: that another one has the same bytes here shows in no time.
    """

    source: BlobReader
    files: DiskFiles
    _known: frozenset[str] | set[str] = field(default_factory=set)
    """Names of blobs that were on the disk when this worker last looked; other workers may have made room since."""
    _writes: "set[asyncio.Task[None]]" = field(default_factory=set)

    def has(self, tenant: TenantId, digest: Digest) -> bool:
        """Tell whether a tenant's blob was on the disk lately; it may be gone, and is verified only when it is read."""
        return disk_name(tenant, digest) in self._known

    async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> bytes | bytearray | memoryview:
        """All bytes of a blob, verified; raises what the source does."""
        name = disk_name(tenant, digest)
        try:
            with span("hotslot.load.disk") as looked:
                found = await asyncio.to_thread(self.files.read, digest, size_bytes, name)
                looked.set({"hotslot.load.found": found is not None})
        except OSError as exc:
            log.warning("disk_read_failed", digest=digest, why=str(exc))
            found = None
        if found is not None:
            self._known = self._known | {name}
            return found
        self._known = self._known - {name}
        blob = await self.source.read_blob(tenant, digest, size_bytes)
        if len(self._writes) < MAX_PENDING_WRITES:
            task = asyncio.create_task(self._keep(digest, blob, name), name=f"keep {digest}")
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)
        return blob

    async def drop(self, tenant: TenantId, digest: Digest) -> None:
        """Remove a tenant's blob, for all workers that share the folder."""
        await self.settled()
        name = disk_name(tenant, digest)
        self._known = self._known - {name}
        try:
            await asyncio.to_thread(self.files.remove, name)
        except OSError as exc:
            log.warning("disk_remove_failed", digest=digest, why=str(exc))

    async def settled(self) -> None:
        """Wait for the writes under way."""
        if self._writes:
            await asyncio.wait(self._writes)

    async def _keep(self, digest: Digest, blob: bytes | bytearray | memoryview, name: str) -> None:
        try:
            if not await asyncio.to_thread(self.files.write, digest, blob, name):
                log.warning("disk_cache_too_small", digest=digest, size_bytes=len(blob))
            self._known = await asyncio.to_thread(self.files.names)
        except OSError as exc:
            log.warning("disk_write_failed", digest=digest, why=str(exc))


def open_disk_tier(options: DiskOptions, source: BlobReader) -> DiskTier | None:
    """The tier, or None, with a warning, when its folder cannot be used. Blocks."""
    try:
        files = DiskFiles(options.folder, options.budget_bytes)
        known = files.names()
    except OSError as exc:
        log.warning("disk_cache_not_used", folder=str(options.folder), why=str(exc))
        return None
    return DiskTier(source, files, known)
