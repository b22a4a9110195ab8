"""Follows a tenant's changes: what is there already, then what comes, in order and without gaps.

However many watch, one query of the process finds what other processes wrote, and one reads what came for a tenant.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from functools import partial

import structlog
from sqlalchemy import Engine

from hotslot.errors import HotslotError
from hotslot.ids import TenantId
from hotslot.single_flight import SingleFlight
from store_service.catalog import reads
from store_service.catalog.catalog import Catalog
from store_service.catalog.database import reading
from store_service.catalog.records import CatalogEvent
from store_service.execution.offload import Offload

log = structlog.get_logger(__name__)

BATCH_EVENTS = 500
MAX_ANNOUNCEMENTS = 64
"""Most that wait for one watcher; the oldest go, since a version that has been published needs none."""
MAX_ANNOUNCED_BYTES = 8 * 2**20
"""Manifests of those that wait for one watcher. One has some 100 bytes for each module; a watcher may sleep."""
EVERY_S = 1.0
"""Time between two looks for what other processes wrote to the same database."""


class ChangeSignal:
    """Wakes the watchers of a tenant; told from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[TenantId, asyncio.Event] = {}
        self._hearers: defaultdict[TenantId, list[deque[CatalogEvent]]] = defaultdict(list)
        """Announcements that watchers have yet to give away."""

    def notify(self, tenant: TenantId) -> None:
        """Something changed."""
        self._loop.call_soon_threadsafe(self.wake, (tenant,))

    def hears(self, tenant: TenantId) -> bool:
        """Tell, on any thread, whether an announcement would be heard."""
        return tenant in self._hearers

    def announce(self, tenant: TenantId, events: Sequence[CatalogEvent]) -> None:
        """Tell, from any thread, those watchers of a publication under way who asked for announcements."""
        self._loop.call_soon_threadsafe(self._announce, tenant, events)

    @contextmanager
    def hearing(self, tenant: TenantId) -> Iterator[deque[CatalogEvent]]:
        """Announcements of a tenant as they come, on the event loop; each one wakes the tenant's watchers."""
        heard: deque[CatalogEvent] = deque(maxlen=MAX_ANNOUNCEMENTS)
        self._hearers[tenant].append(heard)
        try:
            yield heard
        finally:
            left = [each for each in self._hearers[tenant] if each is not heard]
            if left:
                self._hearers[tenant] = left
            else:
                del self._hearers[tenant]

    def _announce(self, tenant: TenantId, events: Sequence[CatalogEvent]) -> None:
        for heard in self._hearers.get(tenant, ()):
            heard.extend(events)
            while len(heard) > 1 and sum(len(event.manifest_json) for event in heard) > MAX_ANNOUNCED_BYTES:
                heard.popleft()
        self.wake((tenant,))

    @property
    def watched(self) -> tuple[TenantId, ...]:
        """Tenants whose next change is waited for."""
        return tuple(self._waiting)

    def wake(self, tenants: Collection[TenantId]) -> None:
        """Let watchers look, on the event loop."""
        for tenant in tenants:
            event = self._waiting.pop(tenant, None)
            if event is not None:
                event.set()

    def next_change(self, tenant: TenantId) -> asyncio.Event:
        """Set at the tenant's next change; take it before reading, so that none is missed."""
        return self._waiting.setdefault(tenant, asyncio.Event())


class TenantWatches:
    """The watchers of one process. Lives on the event loop."""

    def __init__(self, catalog: Catalog, engine: Engine, signal: ChangeSignal, offload: Offload) -> None:
        self._catalog = catalog
        self._engine = engine
        self._signal = signal
        self._offload = offload
        self._reads: SingleFlight[tuple[TenantId, int, asyncio.Event], list[CatalogEvent]] = SingleFlight()
        self._watchers: Counter[TenantId] = Counter()
        self._looking: asyncio.Task[None] | None = None
        """Looks for what other processes wrote, as long as a call watches."""
        self._seen: dict[TenantId, int] = {}
        """Revisions of the watched tenants when they were last looked at."""

    async def look(self) -> None:
        """Wake the watchers of tenants whose revision is another one than before, or all where it cannot be read."""
        watched = self._signal.watched
        if not watched:
            return
        try:
            found = await self._offload(self._revisions, watched)
        except HotslotError as exc:
            log.warning("changes_not_seen", why=exc.message)
            self._signal.wake(watched)  # they find the same, and tell their callers
            return
        self._signal.wake([tenant for tenant in watched if self._seen.get(tenant) != found[tenant]])
        self._seen = found

    async def events(
        self, tenant: TenantId, from_revision: int, *, announcements: bool = False
    ) -> AsyncGenerator[CatalogEvent]:
        """Events after a revision, and announcements where they are wanted, for ever; raises RevisionCompactedError."""
        self._watchers[tenant] += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_again(), name="look for changes")
        try:
            with self._signal.hearing(tenant) if announcements else nullcontext(deque[CatalogEvent]()) as heard:
                async with aclosing(self._events(tenant, from_revision, heard)) as events:
                    async for event in events:
                        yield event
        finally:
            self._watchers[tenant] -= 1
            if not self._watchers[tenant]:
                del self._watchers[tenant]
                self._signal.wake((tenant,))  # asked for no more
            if not self._watchers and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.look()

    async def _events(
        self, tenant: TenantId, revision: int, heard: deque[CatalogEvent]
    ) -> AsyncGenerator[CatalogEvent]:
        while True:
            # A read that began before this wait did may lack the change before it, and is not shared.
            changed = self._signal.next_change(tenant)
            while heard:
                yield heard.popleft()
            read = partial(self._after, tenant, revision)
            found = await self._reads.run((tenant, revision, changed), read)
            for event in found:
                yield event
                revision = event.revision
            if not found:
                await changed.wait()

    def _revisions(self, tenants: Collection[TenantId]) -> dict[TenantId, int]:
        with reading(self._engine) as connection:
            return reads.revisions_of(connection, tenants)

    async def _after(self, tenant: TenantId, revision: int) -> list[CatalogEvent]:
        return await self._offload(self._catalog.events_after, tenant, revision, limit=BATCH_EVENTS)
