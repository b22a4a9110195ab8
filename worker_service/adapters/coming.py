"""Brings versions that the store is about to publish, so that their bytes are here when their names move to them."""

import asyncio
from typing import Protocol

import structlog

from hotslot.errors import HotslotError
from hotslot.ids import Digest, TenantId
from hotslot.references import Reference
from worker_service.adapters.version import AdapterVersion, ComingVersion

log = structlog.get_logger(__name__)


class ServedReferences(Protocol):
    """References with the versions that serve them."""

    def peek(self, tenant: TenantId, reference: Reference) -> AdapterVersion | None:
        """The version that serves a reference here."""
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
        self._expected: asyncio.Queue[tuple[TenantId, Reference, ComingVersion]] = asyncio.Queue()

    def expect(self, tenant: TenantId, coming: ComingVersion) -> None:
        """Bring a version that is about to be published under a name, if that is served from here now."""
        reference = Reference(coming.name, coming.tag, None)
        served = self._references.peek(tenant, reference)
        if served is not None and self._home.is_resident(served.digest):
            self._expected.put_nowait((tenant, reference, coming))

    async def run(self) -> None:
        """Bring what is expected, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._bring(*await self._expected.get()))

    async def _bring(self, tenant: TenantId, reference: Reference, coming: ComingVersion) -> None:
        try:
            await self._home.bring(coming.under(tenant, reference))
        except HotslotError as exc:  # its publication may have failed; otherwise the name's swap brings it
            log.info("coming_version_not_brought", reference=str(reference), digest=coming.digest, why=exc.message)
