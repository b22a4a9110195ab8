"""Swaps: a newer version is prepared beside the one that serves, and the name moves to it once it is ready."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from hotslot.errors import HotslotError
from hotslot.ids import Digest
from hotslot.references import Reference
from worker_service.adapters.known_reference import KnownReference, ReferenceLimits
from worker_service.adapters.version import AdapterVersion

log = structlog.get_logger(__name__)

OnReady = Callable[[KnownReference, AdapterVersion], None]
"""Hears that a newer version of a reference is ready."""


class VersionHome(Protocol):
    """Place of the versions that references stand for."""

    def is_resident(self, digest: Digest) -> bool:
        """True for a version that can be served without the store."""
        ...

    async def prepare(self, version: AdapterVersion) -> None:
        """Bring a version to where it can be served from at once; raises HotslotError."""
        ...

    def moved(self, old: AdapterVersion, new: AdapterVersion) -> None:
        """Hear that a name moved from an old to a new version."""
        ...


class Swaps:
    """Swaps of one worker's references. Belongs to one event loop."""

    def __init__(
        self, home: VersionHome, limits: ReferenceLimits, clock: Callable[[], float], on_ready: OnReady
    ) -> None:
        self._home = home
        self._limits = limits
        self._clock = clock
        self._on_ready = on_ready

    def begin(self, reference: Reference, entry: KnownReference, fresh: AdapterVersion) -> None:
        """Prepare a version, unless that is under way, or failed a moment ago; any other swap of the entry ends."""
        if entry.swap is not None and entry.swap[0] == fresh.digest:
            return
        if entry.failed_digest == fresh.digest and self._clock() - entry.failed_s < self._limits.swap_retry_s:
            return
        entry.end_swap()
        entry.swap = fresh.digest, asyncio.create_task(self._swap(reference, entry, fresh), name=f"swap {reference}")

    async def _swap(self, reference: Reference, entry: KnownReference, fresh: AdapterVersion) -> None:
        kept = entry.version.digest
        try:
            await self._home.prepare(fresh)
        except HotslotError as exc:
            entry.swap, entry.failed_digest, entry.failed_s = None, fresh.digest, self._clock()
            log.warning("swap_failed", reference=str(reference), kept=kept, new=fresh.digest, why=exc.message)
            return
        entry.swap = None
        self._on_ready(entry, entry.latest if entry.latest.digest == fresh.digest else fresh)
