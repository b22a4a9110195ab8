"""Tells the store which versions this worker keeps by their digest, so that retention does not remove them.

Pins may be on a version that its tag has left, and defaults may name digests; no request may ask for either for hours.
Resolving a reference with a digest is what tells the store (`retention_grace_s`).
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from hotslot.errors import HotslotError
from hotslot.ids import TenantId
from hotslot.references import Reference
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.policy import AdapterDefaults

log = structlog.get_logger(__name__)

EVERY_S = 60.0
MAX_PARALLEL = 4


class ToldUses:
    """Tell the store of one worker's uses, again and again. Belongs to one event loop."""

    def __init__(
        self,
        resolve: Callable[[TenantId, Reference], Awaitable[object]],
        holdings: Holdings,
        defaults: AdapterDefaults,
    ) -> None:
        self._resolve = resolve
        self._holdings = holdings
        self._defaults = defaults

    def kept(self) -> set[tuple[TenantId, Reference]]:
        """Versions that pins are on, and those that defaults name, each by its digest."""
        pinned = {
            (tenant, Reference(reference.name, None, digest))
            for (tenant, reference), digest in self._holdings.reference_pins().items()
        }
        named = {
            (tenant, Reference(selection.reference.name, None, selection.reference.digest))
            for tenant, selections in self._defaults.of_all().items()
            for selection in selections
            if selection.reference.digest is not None
        }
        return pinned | named

    async def tell(self) -> None:
        """Tell once; what the store does not know any more, or while it is away, is left for the next time."""
        turns = asyncio.Semaphore(MAX_PARALLEL)

        async def tell_of(tenant: TenantId, reference: Reference) -> None:
            async with turns:
                try:
                    await self._resolve(tenant, reference)
                except HotslotError as exc:
                    log.info("use_not_told", tenant=tenant, reference=str(reference), why=exc.message)

        await asyncio.gather(*(tell_of(*key) for key in self.kept()))
