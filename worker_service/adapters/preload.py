"""Brings a starting worker's share of what its pool holds into memory, before it takes requests.

When it joins, placement makes it the home of some of the versions that others serve now. With these in memory, the
first requests for them do not wait. Bounded in time and bytes; whatever fails is left to the first request.
"""

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from hotslot.contract.control import WorkerState
from hotslot.errors import HotslotError, NotFoundError
from hotslot.ids import AdapterName, Digest, TenantId
from hotslot.references import Reference
from shared.coordination.directory import Directory
from shared.fleet.policy import Fleet
from shared.fleet.records import PlacedVersion, ReportedLoad, Resident, WorkerInfo, WorkerRecord, distance_of
from worker_service.adapters.provider import AdapterProvider
from worker_service.adapters.version import AdapterVersion

log = structlog.get_logger(__name__)

MAX_ASKED = 64
"""Workers whose residency is read; in a larger pool, a random choice of them."""
MAX_PARALLEL = 4


@dataclass(frozen=True, slots=True)
class PreloadLimits:
    """Limits of a preload."""

    timeout_s: float
    """0 turns preloading off."""
    max_bytes: int
    """Bytes of weights, as the store has them."""


async def preload(directory: Directory, me: WorkerInfo, provider: AdapterProvider, limits: PreloadLimits) -> int:
    """Load what this worker will be the home of; returns how many versions. Raises nothing."""
    if not limits.timeout_s:
        return 0
    loading = _Preloading(provider, limits.max_bytes, provider.tiers.engine.num_slots)
    try:
        async with asyncio.timeout(limits.timeout_s):
            wanted = await _share(directory, me, random.Random())
            for first in range(0, len(wanted), MAX_PARALLEL):
                await asyncio.gather(*(loading.load(resident) for resident in wanted[first : first + MAX_PARALLEL]))
    except (HotslotError, TimeoutError) as exc:
        log.info("preload_ended_early", why=str(exc) or f"it took {limits.timeout_s:g} s")
    log.info("preloaded", versions=loading.loaded, size_bytes=loading.size_bytes)
    return loading.loaded


def share_of(
    me: WorkerRecord,
    workers: Sequence[WorkerRecord],
    placements: Mapping[Digest, Sequence[PlacedVersion]],
    now_s: float,
) -> list[Resident]:
    """Versions that a new worker will be a home of, the most wanted first and pinned ones before all, with their users.

    Only workers that serve alike count: others share no requests with it.
    """
    alike = [record for record in workers if record.info.serves_like(me.info)]
    fleet = Fleet((*alike, me), now_s)
    wanted: list[tuple[bool, float, int, Resident]] = []
    for digest, holders in placements.items():
        if me.info.worker_id not in fleet.homes(digest, holders):
            continue
        named = [placement.resident for placement in holders if placement.resident.name]
        if not named:
            continue
        is_pinned = any(placement.resident.pinned for placement in holders)
        demand = sum(placement.resident.demand for placement in holders)
        fastest = min(distance_of(placement.resident.tier) for placement in holders)
        users = dict.fromkeys(user for it in named for user in ((it.tenant, it.name), *it.others))
        resident = replace(named[0], others=tuple(users)[1:])
        wanted.append((not is_pinned, -demand, fastest, resident))
    return [resident for *_, resident in sorted(wanted, key=lambda item: (*item[:3], item[3].digest))]


async def _share(directory: Directory, me: WorkerInfo, chance: random.Random) -> list[Resident]:
    view = await directory.workers(me.base_model_digest)
    others = [record for record in view.workers if record.info.worker_id != me.worker_id]
    # The first of its kind begins with what the others are asked for.
    knowing = [record for record in others if record.info.serves_like(me)] or others
    asked = chance.sample(knowing, min(MAX_ASKED, len(knowing)))
    residencies = await asyncio.gather(
        *(directory.residency(me.base_model_digest, record.info.worker_id) for record in asked)
    )
    placements: dict[Digest, list[PlacedVersion]] = {}
    for placement in (placement for residency in residencies for placement in residency):
        placements.setdefault(placement.resident.digest, []).append(placement)
    record = WorkerRecord(me, WorkerState.READY, ReportedLoad(), view.time_s + math.inf, 0)
    return share_of(record, others, placements, view.time_s)


@dataclass(slots=True)
class _Preloading:
    """Loads of one start, within what is left of the limits."""

    provider: AdapterProvider
    max_bytes: int
    free_slots: int
    loaded: int = 0
    size_bytes: int = 0

    async def load(self, resident: Resident) -> None:
        """Into host memory, and into slots while there are free ones."""
        tiers = self.provider.tiers
        try:
            version = await self._find(resident)
            size_bytes = version.manifest.weights_size_bytes
            if self.size_bytes + size_bytes > self.max_bytes:
                return
            self.size_bytes += size_bytes
            num_slots = tiers.engine.slots_for(version.manifest.ranks_in_slots)
            async with tiers.hold([version]) as (weights,):
                tiers.note(version)
                if num_slots <= self.free_slots:
                    self.free_slots -= num_slots
                    await tiers.activate(weights)
            self.loaded += 1
        except HotslotError as exc:
            log.info("not_preloaded", digest=resident.digest, why=exc.message)

    async def _find(self, resident: Resident) -> AdapterVersion:
        """The version on behalf of one of those who use it; some may have deleted it. Raises the store's errors."""
        *others, last = ((resident.tenant, resident.name), *resident.others)
        for user in others:
            with suppress(NotFoundError):
                return await self._ask(resident.digest, *user)
        return await self._ask(resident.digest, *last)

    async def _ask(self, digest: Digest, tenant: TenantId, name: str) -> AdapterVersion:
        return await self.provider.references.resolve_current(tenant, Reference(AdapterName(name), None, digest))
