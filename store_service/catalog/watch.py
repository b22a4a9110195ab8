"""Follows a tenant's changes: what is there already, then what comes, in order and without gaps."""

import asyncio
from collections.abc import AsyncGenerator

from hotslot.ids import TenantId
from shared.loops import happens
from store_service.catalog.catalog import Catalog
from store_service.catalog.records import CatalogEvent
from store_service.execution.offload import Offload

BATCH_EVENTS = 500


class ChangeSignal:
    """Wakes the watchers of a tenant; told from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[TenantId, asyncio.Event] = {}

    def notify(self, tenant: TenantId) -> None:
        """Something changed."""
        self._loop.call_soon_threadsafe(self._wake, tenant)

    def _wake(self, tenant: TenantId) -> None:
        event = self._waiting.pop(tenant, None)
        if event is not None:
            event.set()

    def next_change(self, tenant: TenantId) -> asyncio.Event:
        """Set at the tenant's next change; take it before reading, so that none is missed."""
        return self._waiting.setdefault(tenant, asyncio.Event())


async def watch(
    catalog: Catalog,
    signal: ChangeSignal,
    offload: Offload,
    tenant: TenantId,
    from_revision: int,
    *,
    poll_s: float,
) -> AsyncGenerator[CatalogEvent]:
    """Events after a revision, for ever.

    Other processes may write to the same database, so it is also asked every `poll_s`. Raises
    RevisionCompactedError.
    """
    revision = from_revision
    while True:
        changed = signal.next_change(tenant)
        events = await offload(catalog.events_after, tenant, revision, limit=BATCH_EVENTS)
        for event in events:
            yield event
            revision = event.revision
        if not events:
            await happens(changed, poll_s)
