"""Keeps in memory what adapters' policies want here, from before the first request on and across restarts.

The store knows which versions are pinned, the policy of placement which workers are to have them. Both are looked at
every few seconds, and at once when a change is heard of. If they cannot be read, all that is kept stays.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from hotslot.errors import HotslotError
from hotslot.ids import AdapterName, Digest, TenantId, WorkerId
from hotslot.references import Reference
from shared.coordination.known_pool import KnownPool
from shared.fleet.policy import Fleet
from shared.fleet.records import WorkerInfo, WorkerLoad, WorkerRecord, WorkerState
from shared.fleet.replica_policy import ReplicaPolicy
from worker_service.adapters.catalog_watch import CatalogChange, CatalogWatch, ChangeKind
from worker_service.adapters.preload import PreloadLimits
from worker_service.adapters.provider import AdapterProvider

log = structlog.get_logger(__name__)

EVERY_S = 10.0
MIN_INTERVAL_S = 0.5
"""Between two looks, however many changes are heard of."""
MAX_PARALLEL = 4


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """A version that its adapter's owner wants in memory before anybody asks."""

    tenant: TenantId
    name: AdapterName
    digest: Digest
    policy: ReplicaPolicy


class PinnedSource(Protocol):
    """Who knows what is pinned."""

    async def pinned(self) -> list[PinnedVersion]:
        """Of all tenants, for this worker's base model; raises HotslotError."""
        ...


class PoolReader(Protocol):
    """Who knows the workers that share pinned versions."""

    async def fleet(self) -> Fleet:
        """As it is now, with this worker as one that takes requests; raises CoordinationUnavailableError."""
        ...


class PinnedPool:
    """The workers that share pinned versions with this one."""

    def __init__(self, known: KnownPool, me: WorkerInfo) -> None:
        self._known = known
        self._me = me

    async def fleet(self) -> Fleet:
        """See `PoolReader`."""
        view = await self._known.workers()
        alike = [record for record in view.workers if record.info.serves_like(self._me)]
        others = [record for record in alike if record.info.worker_id != self._me.worker_id]
        me = WorkerRecord(self._me, WorkerState.READY, WorkerLoad(), float("inf"), 0)
        return Fleet((*others, me), view.time_s)


class Keeper:
    """A background task between `async with` and its end. Belongs to one event loop."""

    def __init__(
        self,
        source: PinnedSource,
        provider: AdapterProvider,
        watch: CatalogWatch,
        me: WorkerId,
        pool: PoolReader | None,
        limits: PreloadLimits,
        *,
        every_s: float = EVERY_S,
    ) -> None:
        """Without a pool everything pinned is this worker's. Entering waits for the first look, within the limits."""
        self._source = source
        self._provider = provider
        self._watch = watch
        self._me = me
        self._pool = pool
        self._limits = limits
        self._every_s = every_s
        self._names: set[tuple[TenantId, AdapterName]] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def hear(self, tenant: TenantId, change: CatalogChange) -> None:
        """Something changed in the catalog."""
        if change.kind is ChangeKind.POLICY_CHANGED or (tenant, change.adapter) in self._names:
            self._changed.set()

    async def __aenter__(self) -> "Keeper":
        self._watch.on_change = self.hear
        looked = asyncio.Event()
        self._task = asyncio.create_task(self._run(looked), name="keep pinned versions")
        with suppress(TimeoutError):
            await asyncio.wait_for(looked.wait(), self._limits.timeout_s)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self, looked: asyncio.Event) -> None:
        while True:
            self._changed.clear()
            try:
                await self.look()
            except HotslotError as exc:
                log.info("pinned_versions_unknown", why=exc.message)
            looked.set()
            await asyncio.sleep(MIN_INTERVAL_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._every_s * random.uniform(0.8, 1.0))

    async def look(self) -> None:
        """Bring what is pinned here now, then let go of what is not any more. Raises HotslotError."""
        pinned = await self._source.pinned()
        fleet = await self._pool.fleet() if self._pool is not None else None
        mine = [it for it in pinned if fleet is None or fleet.should_hold(self._me, it.digest, it.policy)]
        self._names = {(it.tenant, it.name) for it in pinned}
        budget = _Budget(self._limits.max_bytes)
        for first in range(0, len(mine), MAX_PARALLEL):
            await asyncio.gather(*(self._keep(it, budget) for it in mine[first : first + MAX_PARALLEL]))
        for key in self._provider.kept - {(it.tenant, it.digest) for it in mine}:
            self._provider.stop_keeping(*key)
            log.info("not_kept_any_more", tenant=key[0], digest=key[1])

    async def _keep(self, pinned: PinnedVersion, budget: "_Budget") -> None:
        """What fails is tried again at the next look."""
        known = (pinned.tenant, pinned.digest) in self._provider.kept
        try:
            reference = Reference(pinned.name, None, pinned.digest)
            version = await self._provider.references.hint(pinned.tenant, reference)
            if not budget.take(version.manifest.weights_size_bytes):
                log.warning(
                    "not_kept", reference=str(reference), why=f"{self._limits.max_bytes} bytes are kept already"
                )
                return
            if not known:
                await self._provider.keep(version)
                log.info("kept", tenant=pinned.tenant, reference=str(reference))
        except HotslotError as exc:
            log.warning("not_kept", tenant=pinned.tenant, adapter=pinned.name, digest=pinned.digest, why=exc.message)


@dataclass(slots=True)
class _Budget:
    """What is left of a bound in bytes."""

    left: int

    def take(self, size_bytes: int) -> bool:
        """Whether there was room."""
        if size_bytes > self.left:
            return False
        self.left -= size_bytes
        return True
