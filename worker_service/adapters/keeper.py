"""Keeps in memory what adapters' policies want here, from before the first request on and across restarts.

The store knows which versions are pinned, the policy of placement which workers are to have them. Both are looked at
every few seconds, and at once when a change is heard of. If they cannot be read, all that is kept stays.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import structlog

from hotslot.contract.control import WorkerState
from hotslot.errors import HotslotError
from hotslot.ids import AdapterName, TenantId, WorkerId
from hotslot.references import Reference
from shared.coordination.known_pool import KnownPool
from shared.fleet.policy import Fleet
from shared.fleet.records import ReportedLoad, WorkerInfo, WorkerRecord
from shared.loops import happens
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind
from worker_service.adapters.preload import PreloadLimits
from worker_service.adapters.provider import AdapterProvider
from worker_service.adapters.store_client import StoreView
from worker_service.adapters.version import WantedVersion

log = structlog.get_logger(__name__)

EVERY_S = 10.0
MIN_INTERVAL_S = 0.5
"""Between two looks, however many changes are heard of."""
MAX_PARALLEL = 4


async def read_fleet(known: KnownPool, me: WorkerInfo) -> Fleet:
    """The workers that serve alike, with this one as one that takes requests; raises CoordinationUnavailableError."""
    view = await known.workers()
    alike = [record for record in view.workers if record.info.serves_like(me)]
    others = [record for record in alike if record.info.worker_id != me.worker_id]
    return Fleet((*others, WorkerRecord(me, WorkerState.READY, ReportedLoad(), float("inf"), 0)), view.time_s)


def in_turns(wanted: Iterable[WantedVersion]) -> list[WantedVersion]:
    """The first of each tenant, then the second of each: none takes all of the room that is for what is pinned."""
    taken: Counter[TenantId] = Counter()
    numbered: list[tuple[int, WantedVersion]] = []
    for each in wanted:
        numbered.append((taken[each.tenant], each))
        taken[each.tenant] += 1
    return [each for _, each in sorted(numbered, key=lambda item: item[0])]


class Keeper:
    """Looks of one worker at what is pinned. Belongs to one event loop."""

    def __init__(
        self,
        store: StoreView,
        provider: AdapterProvider,
        me: WorkerId,
        fleet: Callable[[], Awaitable[Fleet]] | None,
        limits: PreloadLimits,
    ) -> None:
        """`fleet` reads the workers that share pinned versions; without it everything pinned is this worker's."""
        self._store = store
        self._provider = provider
        self._me = me
        self._fleet = fleet
        self._limits = limits
        self._names: set[tuple[TenantId, AdapterName]] = set()
        self._left_bytes = 0
        self._changed = asyncio.Event()
        self._looked = asyncio.Event()

    def hear(self, tenant: TenantId, change: CatalogChange) -> None:
        """Something changed in the catalog."""
        if change.kind is ChangeKind.POLICY_CHANGED or (tenant, change.adapter) in self._names:
            self._changed.set()

    async def run(self) -> None:
        """Look for ever, every few seconds and when a change was heard of."""
        while True:
            self._changed.clear()
            try:
                await self.look()
            except HotslotError as exc:
                log.info("pinned_versions_unknown", why=exc.message)
            self._looked.set()
            await asyncio.sleep(MIN_INTERVAL_S)
            await happens(self._changed, EVERY_S * random.uniform(0.8, 1.0))

    async def until_looked(self) -> None:
        """Wait for the end of the first look, as long as the limits say."""
        await happens(self._looked, self._limits.timeout_s)

    async def look(self) -> None:
        """Bring what is pinned here now, then let go of what is not any more. Raises HotslotError."""
        pinned = await self._store.pinned()
        fleet = await self._fleet() if self._fleet is not None else None
        mine = in_turns([it for it in pinned if fleet is None or fleet.should_hold(self._me, it.digest, it.policy)])
        self._names = {(it.tenant, it.name) for it in pinned}
        self._left_bytes = self._limits.max_bytes
        for first in range(0, len(mine), MAX_PARALLEL):
            await asyncio.gather(*(self._keep(it) for it in mine[first : first + MAX_PARALLEL]))
        holdings = self._provider.tiers.holdings
        for key in holdings.kept() - {(it.tenant, it.digest) for it in mine}:
            holdings.stop_keeping(*key)
            log.info("not_kept_any_more", tenant=key[0], digest=key[1])

    async def _keep(self, pinned: WantedVersion) -> None:
        """Keep one version; if that fails, the next look tries again."""
        references, tiers = self._provider.references, self._provider.tiers
        known = (pinned.tenant, pinned.digest) in tiers.holdings.kept()
        try:
            reference = Reference(pinned.name, None, pinned.digest)
            version = references.resolve_known(pinned.tenant, reference)
            version = version or await references.resolve_current(pinned.tenant, reference)
            size_bytes = version.manifest.weights_size_bytes
            if size_bytes > self._left_bytes:
                log.warning(
                    "not_kept", reference=str(reference), why=f"{self._limits.max_bytes} bytes are kept already"
                )
                return
            self._left_bytes -= size_bytes
            if not known:
                await tiers.keep(version)
                log.info("kept", tenant=pinned.tenant, reference=str(reference))
        except HotslotError as exc:
            log.warning("not_kept", tenant=pinned.tenant, adapter=pinned.name, digest=pinned.digest, why=exc.message)
