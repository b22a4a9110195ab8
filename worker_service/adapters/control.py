"""What operators do with adapters on one worker: load, unload, pin, list, defaults, on and off."""

import asyncio
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

from hotslot.errors import AdapterNotLoadedError, AdapterPinnedError, RequestDeadlineError
from hotslot.ids import Digest, TenantId
from hotslot.references import Reference
from worker_service.adapters.policy import AdapterPolicy, Selection
from worker_service.adapters.provider import AdapterProvider
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.snapshot import EngineSnapshot

USERS_POLL_S = 0.02


class Tier(enum.Enum):
    """Where an adapter is on this worker, fastest first."""

    SLOT = "slot"
    HOST = "host"
    DISK = "disk"
    LOADING = "loading"


@dataclass(frozen=True, slots=True)
class Held:
    """One adapter on this worker, as one tenant sees it."""

    digest: Digest
    references: tuple[str, ...]
    tier: Tier
    max_rank: int
    slots: tuple[int, ...]
    users: int
    """Requests that hold it."""
    pinned: bool
    host_size_bytes: int
    last_used_s: float
    """On the monotonic clock."""


@dataclass(frozen=True, slots=True)
class LoadTimings:
    """Where a load spent its time, in seconds; stages that were not needed are 0."""

    resolve_s: float
    fetch_s: float
    wait_s: float
    activate_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """A version that is where it was asked to be."""

    held: Held
    previous_digest: Digest | None
    timings: LoadTimings


@dataclass(slots=True)
class AdapterControl:
    """The use cases behind AdapterControlService, except for those on the worker itself."""

    provider: AdapterProvider
    policy: AdapterPolicy
    clock: Callable[[], float] = time.monotonic

    async def load(
        self, tenant: TenantId, reference: Reference, *, host_only: bool = False, pin: bool = False
    ) -> LoadOutcome:
        """Ask the store what the reference stands for now, bring that into slots (or host memory only), and flip.

        Until the flip the old version serves; if anything fails it goes on serving. Raises the store's and the
        loader's errors, and SlotsFullError.
        """
        provider = self.provider
        started_s = self.clock()
        version = await provider.references.ask(tenant, reference)
        resolved_s = self.clock()
        pin = pin or provider.is_pinned_reference(version)
        was_resident = provider.is_resident(version.digest)
        wait_s = activate_s = 0.0
        async with provider.hold([version]) as (weights,):
            fetched_s = self.clock()
            if pin or not host_only:
                activated = await provider.activate(weights, pin=pin)
                wait_s, activate_s = activated.wait_s, activated.copy_s
            if pin:
                provider.pin(version)
            previous = provider.references.flip(version)
            total_s = self.clock() - started_s
        timings = LoadTimings(
            resolve_s=resolved_s - started_s,
            fetch_s=0.0 if was_resident else fetched_s - resolved_s,
            wait_s=wait_s,
            activate_s=activate_s,
            total_s=total_s,
        )
        held = await self._held(version)
        return LoadOutcome(held, previous.digest if previous is not None else None, timings)

    async def unload(self, tenant: TenantId, reference: Reference, timeout_s: float) -> Digest:
        """Remove what the reference stands for here from every tier, once its users have ended.

        A version that another tenant uses too only leaves this tenant's view. Raises AdapterNotLoadedError,
        AdapterPinnedError (also when it is pinned while this waits), and RequestDeadlineError when it is still in use
        after the timeout; then it stays.
        """
        provider = self.provider
        version = self._loaded(tenant, reference)
        digest = version.digest
        if provider.pins.is_pinned_by(tenant, digest) or provider.num_keeping(digest):
            raise AdapterPinnedError(str(reference))
        if not provider.seen.is_shared(tenant, digest):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._remove(digest)
            except TimeoutError as exc:
                raise RequestDeadlineError(f"adapter {str(reference)!r} is still in use and stays loaded") from exc
            except AdapterPinnedError as exc:
                raise AdapterPinnedError(str(reference)) from exc
            if provider.disk is not None:
                await provider.disk.drop(version.manifest.weights_digest)
        provider.references.forget(tenant, digest)
        provider.seen.forget(tenant, digest)
        return digest

    async def pin(self, tenant: TenantId, reference: Reference) -> Held:
        """Load and keep in slots until unpinned. Errors as `load`."""
        return (await self.load(tenant, reference, pin=True)).held

    async def unpin(self, tenant: TenantId, reference: Reference) -> Held:
        """Let it be evicted again. Raises AdapterNotLoadedError."""
        version = self._loaded(tenant, reference)
        self.provider.unpin(version)
        return await self._held(version)

    async def list(self, tenant: TenantId) -> list[Held]:
        """Everything of this tenant that the worker holds in any tier, the latest used first."""
        self.provider.seen.prune()
        snapshot = await self.provider.slots.inspect()
        held = [self._describe(tenant, digest, snapshot) for digest in self.provider.seen.of_tenant(tenant)]
        return sorted(held, key=lambda item: item.last_used_s, reverse=True)

    async def set_defaults(self, tenant: TenantId, selections: tuple[Selection, ...]) -> None:
        """Load these, then give them to requests that name none. If one fails, nothing changes.

        Errors as `load`, and InvalidRequestError when they never fit the slots together; then none is loaded.
        """
        await self.provider.resolve(tenant, selections)
        await asyncio.gather(*(self.load(tenant, selection.reference) for selection in selections))
        self.policy.set_defaults(tenant, selections)

    async def _remove(self, digest: Digest) -> None:
        """Free slots and host memory; requests that come meanwhile are waited for too."""
        tier = self.provider.loader.tier
        await self.provider.slots.deactivate(digest)
        while not tier.drop(digest):
            await asyncio.sleep(USERS_POLL_S)
            await self.provider.slots.deactivate(digest)

    def _loaded(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        version = self.provider.references.peek(tenant, reference)
        if version is None or not self.provider.is_resident(version.digest):
            raise AdapterNotLoadedError(str(reference))
        return version

    async def _held(self, version: AdapterVersion) -> Held:
        snapshot = await self.provider.slots.inspect()
        self.provider.seen.note(version, self.clock())
        return self._describe(version.tenant, version.digest, snapshot)

    def _describe(self, tenant: TenantId, digest: Digest, snapshot: EngineSnapshot) -> Held:
        provider = self.provider
        seen = provider.seen.of_tenant(tenant)[digest]
        entry = provider.loader.tier.peek(digest)
        holder = next((h for h in snapshot.holders if h.digest == digest), None)
        if entry is None:
            tier = Tier.DISK if digest in provider.versions_on_disk() - provider.loader.loading else Tier.LOADING
        elif holder is not None:
            tier = Tier.SLOT if holder.ready else Tier.LOADING
        else:
            tier = Tier.HOST
        # A pinned version is held once more, by the pin itself, and once by each policy that keeps it.
        own = provider.pins.is_pinned(digest) + provider.num_keeping(digest)
        users = entry.users - own if entry is not None else 0
        return Held(
            digest=digest,
            references=tuple(seen.references),
            tier=tier,
            max_rank=seen.max_rank,
            slots=holder.slots if holder is not None else (),
            users=users,
            pinned=provider.pins.is_pinned_by(tenant, digest) or (tenant, digest) in provider.kept,
            host_size_bytes=entry.weights.size_bytes if entry is not None else 0,
            last_used_s=seen.last_used_s,
        )
