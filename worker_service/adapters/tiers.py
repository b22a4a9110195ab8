"""Moves versions into a worker's tiers and keeps them there, as its holdings say."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Protocol

import structlog

from hotslot.contract.control import AdapterTier
from hotslot.errors import SlotsFullError
from hotslot.ids import Digest, TenantId
from hotslot.tracing import span
from shared.metrics.numbers import Measured, states
from worker_service.adapters.disk_tier import DiskTier
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.loader import Loader
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Activated, AdapterWeights
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.engine.tenant_places import TenantPlaces

log = structlog.get_logger(__name__)

USERS_POLL_S = 0.02


class SlotControl(Protocol):
    """The engine, as far as its slots go."""

    async def activate(self, weights: AdapterWeights, *, pin: bool) -> Activated:
        """Bring an adapter into slots; raises SlotsFullError."""
        ...

    async def deactivate(self, digest: Digest) -> None:
        """Free an adapter's slots once its last user ended; cancelling withdraws the wish.

        Raises AdapterPinnedError.
        """
        ...

    def unpin(self, digest: Digest) -> None:
        """Let an adapter be evicted again."""
        ...

    async def inspect(self) -> EngineSnapshot:
        """The engine's state."""
        ...


class AdapterTiers:
    """Loads, activations and pins of one worker. Belongs to one event loop."""

    def __init__(
        self,
        holdings: Holdings,
        loader: Loader,
        slots: SlotControl,
        engine: EngineLimits,
        disk: DiskTier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As many requests may wait for loads as may have rows or wait for them in the engine; more are refused."""
        self.holdings = holdings
        self.engine = engine
        self.clock = clock
        self.disk = disk
        self._loader = loader
        self._slots = slots
        self._loading = TenantPlaces(engine.max_waiting)

    def readings(self) -> Iterator[Measured]:
        """Numbers of loads and of what host memory holds."""
        yield from self._loader.readings()
        tiers = self.holdings.tiers()
        named = {str(tier.value): tiers[tier] for tier in (AdapterTier.SLOT, AdapterTier.HOST, AdapterTier.DISK)}
        yield from states("hotslot_adapters_resident", named)
        yield Measured("hotslot_adapter_evictions_total", self.holdings.num_evicted, ("host",))
        yield Measured("hotslot_host_cache_used_bytes", self.holdings.used_bytes)
        yield Measured("hotslot_host_cache_limit_bytes", self.holdings.budget_bytes)
        yield Measured("hotslot_loading_requests", self.num_loading)

    @property
    def num_loading(self) -> int:
        """Requests that wait for adapters to be loaded."""
        return len(self._loading)

    def is_resident(self, digest: Digest) -> bool:
        """True for a version that can be served without the store."""
        return self.holdings.is_resident(digest)

    def is_at_hand(self, tenant: TenantId, digest: Digest) -> bool:
        """True for a version that a tenant's requests find here, or on its way."""
        return self._loader.is_at_hand(tenant, digest)

    def note(self, version: AdapterVersion) -> None:
        """Note that a request uses a version now."""
        self.holdings.note(version, self.clock())

    @contextlib.asynccontextmanager
    async def hold(self, versions: Sequence[AdapterVersion]) -> AsyncIterator[list[AdapterWeights]]:
        """Weights of all these versions, loaded if need be, in host memory until the block is left.

        Raises the loader's errors, and QueueFullError when too many requests wait for loads already, altogether or of
        this tenant.
        """
        cold = next((each for each in versions if not self.holdings.is_read(each.tenant, each.digest)), None)
        num_rows = self.engine.max_running
        if cold is not None and not self._loading.has_room(cold.tenant, num_rows):
            raise self._loading.refusal(cold.tenant, num_rows, "requests wait for adapters to be loaded", "loading")
        async with contextlib.AsyncExitStack() as stack:
            if cold is not None:
                self._loading.take(cold.tenant)
            try:
                held = await self._acquire_all(versions, stack)
            finally:
                if cold is not None:
                    self._loading.give_back(cold.tenant)
            yield held

    async def activate(self, weights: AdapterWeights, *, pin: bool = False) -> Activated:
        """Bring held weights into slots. Raises SlotsFullError."""
        if not pin:
            with span("hotslot.load.activate", {"hotslot.adapter.digest": weights.digest}):
                return await self._slots.activate(weights, pin=False)
        activated: Activated | None = None
        try:
            with self.holdings.pinning(weights.digest), span("hotslot.load.activate"):
                activated = await self._slots.activate(weights, pin=True)
            return activated
        finally:
            if activated is None and not self.holdings.of(weights.digest).keeps_slots:
                self._slots.unpin(weights.digest)

    async def free(self, digest: Digest) -> None:
        """Free a version's slots and host memory once its users have ended, also those that come meanwhile.

        Raises AdapterPinnedError when a pin keeps its slots, also while this waits.
        """
        await self._slots.deactivate(digest)
        while not self.holdings.drop(digest):
            await asyncio.sleep(USERS_POLL_S)
            await self._slots.deactivate(digest)

    async def drop_blob(self, tenant: TenantId, digest: Digest) -> None:
        """Remove a version's weights from the disk, as the tenant has them there."""
        if self.disk is not None:
            await self.disk.drop(tenant, digest)

    def pin(self, version: AdapterVersion) -> None:
        """Keep an activated, held version for its reference; moves the reference's pin to it."""
        freed = self.holdings.pin((version.tenant, version.reference), version.digest)
        if freed is not None:
            self._slots.unpin(freed)

    def unpin(self, version: AdapterVersion) -> None:
        """End the pin of this version's reference, whatever version it is on."""
        freed = self.holdings.unpin((version.tenant, version.reference))
        if freed is not None:
            self._slots.unpin(freed)

    def is_pinned_reference(self, version: AdapterVersion) -> bool:
        """True where the version's reference is pinned, on this version or another."""
        return self.holdings.pinned((version.tenant, version.reference)) is not None

    async def keep(self, version: AdapterVersion) -> None:
        """Bring a version to host memory and keep it there for its tenant's policy. Raises the loader's errors."""
        await self._loader.acquire(version)
        self.holdings.keep(version.tenant, version.digest)
        self.holdings.release(version.digest, version.tenant)
        self.note(version)

    async def inspect(self) -> EngineSnapshot:
        """The engine's state, which the holdings take in. Raises EngineFailedError."""
        snapshot = await self._slots.inspect()
        self.holdings.see_slots(snapshot.holders)
        return snapshot

    async def bring(self, version: AdapterVersion) -> None:
        """Bring a version to host memory, where it stays while there is room for it. Raises the loader's errors."""
        async with self.hold([version]):
            pass

    async def prepare(self, version: AdapterVersion) -> None:
        """Bring the new version of a name beside the old one: into slots if there is room, else to host memory.

        Without the slots' help the flip is still atomic, the first requests just wait for slots. A pinned name moves
        only when its new version has slots, because it must not lose them.
        """
        pin = self.is_pinned_reference(version)
        async with self.hold([version]) as (weights,):
            try:
                await self.activate(weights, pin=pin)
            except SlotsFullError:
                if pin:
                    raise
                log.info("swap_without_slots", reference=str(version.reference), digest=version.digest)

    def moved(self, old: AdapterVersion, new: AdapterVersion) -> None:
        """Let the pin of a name that has moved move with it."""
        if self.is_pinned_reference(old) and self.holdings.is_resident(new.digest):
            self.pin(new)

    async def close(self) -> None:
        """End the loads under way, and wait for what is being written to the disk."""
        await self._loader.close()
        if self.disk is not None:
            await self.disk.settled()

    async def _acquire_all(
        self, versions: Sequence[AdapterVersion], stack: contextlib.AsyncExitStack
    ) -> list[AdapterWeights]:
        """Load side by side; whatever was acquired is released when the stack unwinds."""

        async def acquire(version: AdapterVersion) -> AdapterWeights:
            weights = await self._loader.acquire(version)
            stack.callback(self.holdings.release, version.digest, version.tenant)
            return weights

        if len(versions) == 1:
            return [await acquire(versions[0])]
        tasks = [asyncio.create_task(acquire(version)) for version in versions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
