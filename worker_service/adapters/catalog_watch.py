"""Follows the catalog for the tenants that are served here, so that names move when their tags do.

A stream begins at the revision at which a tenant's first reference was resolved, and again where it broke off, so
nothing is missed. When that revision is gone, or the catalog is another one, everything is asked again. While a stream
is down, references are as stale as they would be without it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import structlog

from hotslot.backoff import Backoff
from hotslot.errors import HotslotError, RevisionCompactedError
from hotslot.ids import TenantId
from hotslot.references import Reference
from worker_service.adapters.catalog_change import CatalogChange
from worker_service.adapters.heard_changes import HeardChanges
from worker_service.adapters.version import ComingVersion

log = structlog.get_logger(__name__)

MAX_TENANTS = 32
"""Streams of one worker; the tenants that were asked for least recently go without."""
BACKOFF = Backoff(0.1, 15.0)


ChangeOrNews = CatalogChange | ComingVersion | str | None
"""Item of a stream; see `ChangeSource`."""


class ChangeSource(Protocol):
    """Catalog whose changes can be followed."""

    def watch(self, tenant: TenantId, after_revision: int) -> AsyncGenerator[ChangeOrNews, None]:
        """The catalog's id once the stream stands, then every change after the revision; raises HotslotError.

        Versions that are about to be published come in between, in no order with the changes.

        None or empty in the place of the id is that of a store of a release that does not tell it.
        """
        ...


class Follower(Protocol):
    """References that follow the catalog."""

    def apply(self, tenant: TenantId, change: CatalogChange) -> None:
        """Something changed."""
        ...

    async def resync(self, tenant: TenantId) -> int:
        """Ask again for everything; returns a revision that all answers are at least from, 0 without any.

        Raises the store's errors.
        """
        ...


Hearer = Callable[[TenantId, CatalogChange], None]
First = Callable[[TenantId, CatalogChange | ComingVersion], None]


@dataclass(slots=True)
class _Stream:
    """One tenant's."""

    heard: HeardChanges
    catalog_id: str = ""
    """Catalog whose changes were heard of; empty while that is not known."""
    live: bool = False
    task: "asyncio.Task[None] | None" = None


class CatalogWatch:
    """The streams of one worker. Belongs to one event loop."""

    def __init__(self, source: ChangeSource, max_tenants: int = MAX_TENANTS) -> None:
        """Streams are begun by `run`."""
        self._source = source
        self._max_tenants = max_tenants
        # Not a library's map: a stream that makes room is ended.
        self._streams: OrderedDict[TenantId, _Stream] = OrderedDict()
        self._noted = asyncio.Event()

    def is_live(self, tenant: TenantId) -> bool:
        """True while changes to a tenant's adapters arrive here."""
        stream = self._streams.get(tenant)
        return stream is not None and stream.live

    def held_until(self, tenant: TenantId, reference: Reference, revision: int) -> int:
        """The newest revision at which an answer of the store that held at `revision` is known to hold."""
        stream = self._streams.get(tenant)
        return stream.heard.held_until(reference, revision) if stream is not None else revision

    def note(self, tenant: TenantId, revision: int) -> None:
        """Follow a tenant whose reference was resolved, from this revision of its catalog on."""
        if tenant in self._streams:
            self._streams.move_to_end(tenant)
            return
        self._streams[tenant] = _Stream(HeardChanges(revision))
        self._noted.set()
        while len(self._streams) > self._max_tenants:
            self._drop(next(iter(self._streams)))

    async def run(self, follower: Follower, *hearers: Hearer, first: First = lambda tenant, news: None) -> None:
        """Follow the catalogs of all noted tenants, for ever; each change is told to the follower, then the hearers.

        `first` hears of each before them, and alone of versions that are about to be published.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                self._noted.clear()
                for tenant, stream in self._streams.items():
                    if stream.task is None or stream.task.done():
                        work = self._follow(tenant, stream, follower, hearers, first)
                        stream.task = group.create_task(work, name=f"watch {tenant}")
                await self._noted.wait()

    async def _follow(
        self, tenant: TenantId, stream: _Stream, follower: Follower, hearers: Sequence[Hearer], first: First
    ) -> None:
        failures = 0
        while True:
            try:
                async with aclosing(self._source.watch(tenant, stream.heard.until)) as changes:
                    async for change in changes:
                        if isinstance(change, ComingVersion):
                            first(tenant, change)
                            continue
                        if not isinstance(change, CatalogChange):
                            _check_catalog(stream, change or "")
                        stream.live, failures = True, 0
                        if isinstance(change, CatalogChange):
                            stream.heard.add(change)
                            first(tenant, change)
                            follower.apply(tenant, change)
                            for hear in hearers:
                                hear(tenant, change)
            except RevisionCompactedError as exc:
                stream.live = False
                log.warning("catalog_gap", tenant=tenant, why=exc.message)
                if not await self._resync(tenant, stream, follower):
                    return
            except HotslotError as exc:
                log.info("catalog_stream_down", tenant=tenant, why=exc.message)
            finally:
                stream.live = False
            await asyncio.sleep(BACKOFF.pause_s(failures))
            failures += 1

    async def _resync(self, tenant: TenantId, stream: _Stream, follower: Follower) -> bool:
        """Ask for everything again and go on from there; False when there is nothing left to follow."""
        try:
            stream.heard, stream.catalog_id = HeardChanges(await follower.resync(tenant)), ""
        except HotslotError as exc:
            log.warning("resync_failed", tenant=tenant, why=exc.message)
            return True
        if not stream.heard.until:
            del self._streams[tenant]
        return stream.heard.until > 0

    def _drop(self, tenant: TenantId) -> None:
        stream = self._streams.pop(tenant)
        stream.live = False
        if stream.task is not None:
            stream.task.cancel()


def _check_catalog(stream: _Stream, catalog_id: str) -> None:
    """Raise RevisionCompactedError where revisions count the changes of another catalog than so far."""
    if catalog_id and stream.catalog_id not in ("", catalog_id):
        raise RevisionCompactedError(stream.heard.until, 0)
    stream.catalog_id = catalog_id or stream.catalog_id
