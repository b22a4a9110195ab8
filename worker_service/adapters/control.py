"""Use cases of operators on one worker's adapters: load, unload, pin, list, defaults, on and off."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hotslot.contract.control import AdapterTier, LoadedAdapter, LoadResult, LoadTimings
from hotslot.contract.moments import moment
from hotslot.errors import AdapterNotLoadedError, AdapterPinnedError, RequestDeadlineError
from hotslot.formats.principals import Scope
from hotslot.ids import Digest, TenantId
from hotslot.references import Reference
from shared.identity.callers import CALLER
from worker_service.adapters.holding import Held
from worker_service.adapters.pin_shares import check_pins
from worker_service.adapters.policy import AdapterDefaults, Selection
from worker_service.adapters.provider import AdapterProvider
from worker_service.adapters.version import AdapterVersion


@dataclass(slots=True)
class AdapterControl:
    """The use cases behind AdapterControlService, except for those on the worker itself."""

    provider: AdapterProvider
    policy: AdapterDefaults
    clock: Callable[[], float] = time.monotonic

    async def load(
        self,
        tenant: TenantId,
        reference: Reference,
        *,
        host_only: bool = False,
        pin: bool = False,
        min_revision: int = 0,
    ) -> LoadResult:
        """Ask the store what the reference stands for now, bring that into slots (or host memory only), and flip.

        Until the flip the old version serves; if anything fails it goes on serving. Raises the store's and the
        loader's errors, CatalogBehindError, SlotsFullError, and QuotaExceededError for more pins than are a tenant's.
        """
        references, tiers = self.provider.references, self.provider.tiers
        started_s = self.clock()
        version = await references.begin_flip(tenant, reference, min_revision)
        resolved_s = self.clock()
        is_pinned = tiers.is_pinned_reference(version)
        if pin and not is_pinned:
            self._check_pins(version)
        pin = pin or is_pinned
        was_resident = tiers.holdings.is_read(tenant, version.digest)
        wait_s = activate_s = 0.0
        async with tiers.hold([version]) as (weights,):
            fetched_s = self.clock()
            if pin or not host_only:
                activated = await tiers.activate(weights, pin=pin)
                wait_s, activate_s = activated.wait_s, activated.copy_s
            if pin:
                tiers.pin(version)
            previous = references.flip(version)
            total_s = self.clock() - started_s
        timings = LoadTimings(
            resolve_s=resolved_s - started_s,
            fetch_s=0.0 if was_resident else fetched_s - resolved_s,
            wait_s=wait_s,
            activate_s=activate_s,
            total_s=total_s,
        )
        held = await self._held(version)
        return LoadResult(held, previous.digest if previous is not None else "", timings)

    async def unload(self, tenant: TenantId, reference: Reference, timeout_s: float) -> Digest:
        """Remove what the reference stands for here from every tier, once its users have ended.

        A version that another tenant uses too only leaves this tenant's view. Raises AdapterNotLoadedError,
        AdapterPinnedError (also when it is pinned while this waits), and RequestDeadlineError when it is still in use
        after the timeout; then it stays.
        """
        tiers, holdings = self.provider.tiers, self.provider.tiers.holdings
        version = self._loaded(tenant, reference)
        digest = version.digest
        if holdings.of(digest).is_protected_from(tenant):
            raise AdapterPinnedError(str(reference))
        if not holdings.of(digest).is_shared_by(tenant):
            try:
                async with asyncio.timeout(timeout_s):
                    await tiers.free(digest)
            except TimeoutError as exc:
                raise RequestDeadlineError(f"adapter {str(reference)!r} is still in use and stays loaded") from exc
            except AdapterPinnedError as exc:
                raise AdapterPinnedError(str(reference)) from exc
            await tiers.drop_blob(tenant, version.manifest.weights_digest)
        self.provider.references.forget(tenant, digest)
        holdings.forget(tenant, digest)
        return digest

    async def pin(self, tenant: TenantId, reference: Reference, min_revision: int = 0) -> LoadedAdapter:
        """Load and keep in slots until unpinned. Errors as `load`."""
        return (await self.load(tenant, reference, pin=True, min_revision=min_revision)).adapter

    async def unpin(self, tenant: TenantId, reference: Reference) -> LoadedAdapter:
        """Let it be evicted again. Raises AdapterNotLoadedError."""
        version = self._loaded(tenant, reference)
        self.provider.tiers.unpin(version)
        return await self._held(version)

    async def list(self, tenant: TenantId) -> list[LoadedAdapter]:
        """Everything of this tenant that the worker holds in any tier, the latest used first."""
        await self.provider.tiers.inspect()
        return [self._loaded_adapter(held) for held in self.provider.tiers.holdings.of_tenant(tenant)]

    async def set_defaults(self, tenant: TenantId, selections: tuple[Selection, ...], min_revision: int = 0) -> None:
        """Load these, then give them to requests that name none. If one fails, nothing changes.

        Errors as `load`, and InvalidRequestError when they never fit the slots together; then none is loaded.
        """
        await self.provider.resolve(tenant, selections, min_revision)
        await asyncio.gather(*(self.load(tenant, s.reference, min_revision=min_revision) for s in selections))
        self.policy.set_defaults(tenant, selections)

    def _check_pins(self, version: AdapterVersion) -> None:
        """Leave a part of the slots to others, where callers are known; operators pin as they like."""
        caller = CALLER.get()
        if caller is None or Scope.OPERATOR in caller.scopes:
            return
        engine, holdings = self.provider.tiers.engine, self.provider.tiers.holdings
        # Two names of one version take its slots once.
        pins = {(tenant, digest) for (tenant, _), digest in holdings.reference_pins().items()}
        if (version.tenant, version.digest) in pins:
            return
        pinned: Counter[TenantId] = Counter()
        for tenant, digest in pins:
            weights = holdings.of(digest).weights
            pinned[tenant] += engine.slots_for(weights.max_rank) if weights is not None else 0
        num_more = engine.slots_for(version.manifest.ranks_in_slots)
        check_pins(pinned, version.tenant, num_more, engine.num_slots)

    def _loaded(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        version = self.provider.references.resolve_known(tenant, reference)
        if version is None or not self.provider.tiers.holdings.is_read(tenant, version.digest):
            raise AdapterNotLoadedError(str(reference))
        return version

    async def _held(self, version: AdapterVersion) -> LoadedAdapter:
        await self.provider.tiers.inspect()
        self.provider.tiers.note(version)
        return self._loaded_adapter(self.provider.tiers.holdings.held(version.tenant, version.digest))

    def _loaded_adapter(self, held: Held) -> LoadedAdapter:
        return LoadedAdapter(
            digest=held.digest,
            references=held.references,
            tier=held.tier,
            max_rank=held.max_rank,
            slots=held.slots if held.tier is AdapterTier.SLOT else (),
            users=held.users,
            pinned=held.pinned,
            host_size_bytes=held.host_size_bytes,
            last_used_time=moment(time.time() - (self.clock() - held.last_used_s)),
        )
