"""From what a request selects to weights in host memory, held for as long as the request lives.

**Invariant**: a request is served by the digests that its references stood for when it was accepted, and by nothing
else, whatever moves meanwhile.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from hotslot.errors import HotslotError, SlotsFullError
from hotslot.ids import Digest, TenantId
from worker_service.adapters.disk_tier import DiskTier
from worker_service.adapters.loader import Loader
from worker_service.adapters.pins import PinTable
from worker_service.adapters.policy import Selection
from worker_service.adapters.references import ReferenceCache, ReferenceLimits, Resolver
from worker_service.adapters.seen import SeenVersion, SeenVersions
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Activated, AdapterWeights
from worker_service.engine.mix_size import mix_too_large
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.engine.tenant_places import TenantPlaces

log = structlog.get_logger(__name__)


class SlotControl(Protocol):
    """What the adapter side asks of the engine."""

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


@dataclass(frozen=True, slots=True)
class Chosen:
    """One adapter of a request, with the version that serves it."""

    selection: Selection
    version: AdapterVersion


@dataclass(slots=True)
class AdapterProvider:
    """References, loads and pins of one worker. Belongs to one event loop."""

    resolver: Resolver
    loader: Loader
    slots: SlotControl
    engine: EngineLimits
    """As many requests may wait for adapters to be loaded as may have rows or wait for them; more are refused."""
    limits: ReferenceLimits = field(default_factory=ReferenceLimits)
    clock: Callable[[], float] = time.monotonic
    disk: DiskTier | None = None
    """Where the loader's reads come from, if there is one."""
    pins: PinTable = field(default_factory=PinTable)
    kept: set[tuple[TenantId, Digest]] = field(default_factory=set)
    """What stays in host memory because of its adapter's policy."""
    references: ReferenceCache = field(init=False)
    _loading: TenantPlaces = field(init=False)
    _pinning: Counter[Digest] = field(default_factory=Counter)
    """Activations under way that will pin."""
    seen: SeenVersions = field(init=False)

    def __post_init__(self) -> None:
        self._loading = TenantPlaces(self.engine.max_waiting)
        self.seen = SeenVersions(self._is_here)
        self.references = ReferenceCache(
            self.resolver, self.is_resident, self._prepare_swap, self._flipped, self.limits, self.clock
        )

    @property
    def num_loading(self) -> int:
        """Requests that wait for adapters to be loaded."""
        return len(self._loading)

    def is_resident(self, digest: Digest) -> bool:
        """Whether a version can be served without the store."""
        return digest in self.loader.tier

    def versions_on_disk(self) -> frozenset[Digest]:
        """Versions that were used since the start and need no store to be loaded again."""
        return self.seen.with_blobs(self.disk.has) if self.disk is not None else frozenset()

    async def resolve(self, tenant: TenantId, selections: Sequence[Selection]) -> tuple[Chosen, ...]:
        """The versions that serve a request which begins now.

        Raises the store's errors, and InvalidRequestError when they never fit the slots together.
        """
        chosen = tuple([Chosen(s, await self.references.current(tenant, s.reference)) for s in selections])
        mix = {item.version.digest: item for item in chosen}
        # One that is too large by itself is RANK_TOO_LARGE, which the loader says.
        if len(mix) > 1:
            ranks = {str(item.selection.reference): item.version.manifest.ranks_in_slots for item in mix.values()}
            error = mix_too_large(ranks, self.engine)
            if error is not None:
                raise error
        for item in chosen:
            self.seen.note(item.version, self.clock())
        return chosen

    @contextlib.asynccontextmanager
    async def hold(self, versions: Sequence[AdapterVersion]) -> AsyncIterator[list[AdapterWeights]]:
        """Weights of all these versions, loaded if need be, in host memory until the block is left.

        Raises the loader's errors, and QueueFullError when too many requests wait for loads already, altogether or of
        this tenant.
        """
        cold = next((version for version in versions if not self.is_resident(version.digest)), None)
        num_rows = self.engine.max_running
        if cold is not None and not self._loading.has_room(cold.tenant, num_rows):
            who = "requests wait for adapters to be loaded"
            raise self._loading.refusal(cold.tenant, num_rows, who, "loading")
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
            return await self.slots.activate(weights, pin=False)
        digest = weights.digest
        self._pinning[digest] += 1
        try:
            activated = await self.slots.activate(weights, pin=True)
        except (HotslotError, asyncio.CancelledError):
            self._end_pinning(digest)
            self._unpin_slots(digest)
            raise
        self._end_pinning(digest)
        return activated

    def pin(self, version: AdapterVersion) -> None:
        """Keep an activated, held version for its reference; moves the reference's pin to it."""
        became_pinned, freed = self.pins.put((version.tenant, version.reference), version.digest)
        if became_pinned:
            self.loader.tier.acquire(version.digest)
        if freed is not None:
            self._let_go(freed)

    def unpin(self, version: AdapterVersion) -> None:
        """End the pin of this version's reference, whatever version it is on."""
        freed = self.pins.remove((version.tenant, version.reference))
        if freed is not None:
            self._let_go(freed)

    def is_pinned_reference(self, version: AdapterVersion) -> bool:
        """Whether the version's reference is pinned, on this version or another."""
        return self.pins.get((version.tenant, version.reference)) is not None

    async def keep(self, version: AdapterVersion) -> None:
        """Bring a version to host memory and keep it there. Raises the loader's errors."""
        key = (version.tenant, version.digest)
        await self.loader.acquire(version)
        if key in self.kept:
            self.loader.release(version.digest)
        self.kept.add(key)
        self.seen.note(version, self.clock())

    def stop_keeping(self, tenant: TenantId, digest: Digest) -> None:
        """Let it be evicted again."""
        self.kept.remove((tenant, digest))
        self.loader.release(digest)

    def num_keeping(self, digest: Digest) -> int:
        """How many tenants' policies keep a version."""
        return sum(kept == digest for _, kept in self.kept)

    async def close(self) -> None:
        """End everything that is under way."""
        await self.references.close()
        await self.loader.close()
        if self.disk is not None:
            await self.disk.settled()

    async def _acquire_all(
        self, versions: Sequence[AdapterVersion], stack: contextlib.AsyncExitStack
    ) -> list[AdapterWeights]:
        """Load side by side; whatever was acquired is released when the stack unwinds."""

        async def acquire(version: AdapterVersion) -> AdapterWeights:
            weights = await self.loader.acquire(version)
            stack.callback(self.loader.release, version.digest)
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

    async def _prepare_swap(self, version: AdapterVersion) -> None:
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

    def _flipped(self, old: AdapterVersion, new: AdapterVersion) -> None:
        if self.is_pinned_reference(old) and self.is_resident(new.digest):
            self.pin(new)

    def _is_here(self, digest: Digest, seen: SeenVersion) -> bool:
        on_disk = self.disk is not None and self.disk.has(seen.weights_digest)
        return self.is_resident(digest) or digest in self.loader.loading or on_disk

    def _let_go(self, digest: Digest) -> None:
        self._unpin_slots(digest)
        self.loader.release(digest)

    def _end_pinning(self, digest: Digest) -> None:
        self._pinning[digest] -= 1
        if not self._pinning[digest]:
            del self._pinning[digest]

    def _unpin_slots(self, digest: Digest) -> None:
        """Unless somebody else pins the version, or is about to."""
        if not self.pins.is_pinned(digest) and digest not in self._pinning:
            self.slots.unpin(digest)
