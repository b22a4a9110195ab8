"""Brings versions that the store is about to publish, so that their bytes are here when their names move to them."""

import asyncio
from collections import OrderedDict
from dataclasses import replace
from typing import Protocol

import structlog

from hotslot.errors import HotslotError
from hotslot.ids import Digest, PartyId, TenantId
from hotslot.references import Reference
from shared.identity.parties import PARTY
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind
from worker_service.adapters.version import AdapterVersion, ComingVersion

log = structlog.get_logger(__name__)

MAX_KNOWN = 64
"""Announced versions whose names have not moved to them; of a publication that fails one stays for a while."""


class ServedReferences(Protocol):
    """References with the versions that serve them."""

    def peek(self, tenant: TenantId, reference: Reference) -> AdapterVersion | None:
        """The version that serves a reference here."""
        ...

    def learn(self, version: AdapterVersion) -> None:
        """Take in what a reference stands for from its version's revision on."""
        ...


class BringsVersions(Protocol):
    """Place that versions are brought to."""

    def is_resident(self, digest: Digest) -> bool:
        """True for a version that can be served without the store."""
        ...

    async def bring(self, version: AdapterVersion) -> None:
        """Bring a version; raises HotslotError."""
        ...


class Arrivals:
    """Versions on their way to host memory before they are published. Belongs to one event loop.

    None of them is served for that: which version a reference stands for is the store's to say, and it says so once the
    version is durable. One whose publication fails stays while there is room for it.
    """

    def __init__(self, references: ServedReferences, home: BringsVersions) -> None:
        self._references = references
        self._home = home
        self._expected: asyncio.Queue[AdapterVersion] = asyncio.Queue()
        # Not a library's map: the oldest makes room.
        self._known: OrderedDict[tuple[TenantId, Reference, Digest], AdapterVersion] = OrderedDict()
        self._bringing: set[tuple[TenantId, Digest]] = set()
        """Once each, under however many tags it is announced: a load takes a place of the tenant's."""

    def hear(self, tenant: TenantId, news: CatalogChange | ComingVersion) -> None:
        """Take in what the watch brings, before any other part does.

        A version that is about to be published under a name that is served from here is brought. When the name moves to
        it, the change says all that the store would be asked for.
        """
        if isinstance(news, ComingVersion):
            self._expect(tenant, news)
        elif news.kind is ChangeKind.TAG_MOVED:
            version = self._known.pop((tenant, Reference(news.adapter, news.tag, None), news.digest), None)
            # One that is not here yet may be one that this worker refuses, as the store would for its base model.
            if version is not None and self._home.is_resident(version.digest):
                self._references.learn(replace(version, revision=news.revision))

    def _expect(self, tenant: TenantId, coming: ComingVersion) -> None:
        reference = Reference(coming.name, coming.tag, None)
        served = self._references.peek(tenant, reference)
        if served is None or not self._home.is_resident(served.digest):
            return
        try:
            version = coming.under(tenant, reference)
        except HotslotError as exc:
            log.warning("announcement_not_read", reference=str(reference), digest=coming.digest, why=exc.message)
            return
        self._known[tenant, reference, version.digest] = version
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        if (key := (tenant, version.digest)) not in self._bringing:
            self._bringing.add(key)
            self._expected.put_nowait(version)

    async def run(self) -> None:
        """Bring what is expected, for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(self._bring(await self._expected.get()))
        finally:
            self._bringing.clear()  # a task that ended before it began told nothing

    async def _bring(self, version: AdapterVersion) -> None:
        # Its turn is its tenant's, so that nobody else's swap waits for what one tenant announces.
        PARTY.set(PartyId(f"tenant {version.tenant}"))
        try:
            await self._home.bring(version)
        except HotslotError as exc:  # its publication may have failed; otherwise the name's swap brings it
            log.info(
                "coming_version_not_brought", reference=str(version.reference), digest=version.digest, why=exc.message
            )
        finally:
            self._bringing.discard((version.tenant, version.digest))
