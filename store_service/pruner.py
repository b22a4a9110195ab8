"""Applies the retention of adapters: soon after each publication, and to all of them from time to time."""

import asyncio

import structlog

from hotslot.errors import HotslotError
from hotslot.ids import AdapterName, TenantId
from shared.loops import happens
from store_service.catalog.policies import Policies
from store_service.catalog.pruning import VersionRetention
from store_service.content.collection import counts_of
from store_service.content.released import ReleasedBlobs
from store_service.execution.offload import Offload

log = structlog.get_logger(__name__)

PAUSE_S = 1.0
"""Least time between two passes, so that a trainer's publications are not held up by each other's retention."""


class Pruner:
    """Passes of one store. Lives on the event loop."""

    def __init__(self, retention: VersionRetention, policies: Policies, blobs: ReleasedBlobs, offload: Offload) -> None:
        self._retention = retention
        self._policies = policies
        self._blobs = blobs
        self._offload = offload
        self._published: set[tuple[TenantId, AdapterName]] = set()
        self._wake = asyncio.Event()

    def note(self, tenant: TenantId, name: AdapterName) -> None:
        """Something was published under a name."""
        self._published.add((tenant, name))
        self._wake.set()

    async def run(self, every_s: float) -> None:
        """Pass after pass, for ever: over what was published, and every so often over everything.

        The first one comes when who keeps a version by its digest had as much time to say so as while a store runs.
        """
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._retention.grace_s)
        all_due_s = loop.time() + every_s
        while True:
            await happens(self._wake, max(all_due_s - loop.time(), 0.0))
            await asyncio.sleep(PAUSE_S)
            self._wake.clear()
            if loop.time() >= all_due_s:
                all_due_s = loop.time() + every_s
                self._published.update(await self._offload(self._policies.with_retention))
            names, self._published = self._published, set()
            for tenant, name in sorted(names):
                await self._prune(tenant, name)
            if removals := await self._offload(self._blobs.remove):
                log.info("released_blobs_removed", **counts_of(removals))

    async def _prune(self, tenant: TenantId, name: AdapterName) -> None:
        try:
            pruning = await self._offload(self._retention.prune, tenant, name)
        except HotslotError as exc:  # one adapter's damage, or its deletion, is not the others' business
            log.warning("retention_failed", tenant=tenant, adapter=name, why=exc.message)
            return
        if pruning.removed:
            log.info("versions_pruned", tenant=tenant, adapter=name, num_versions=len(pruning.removed))
