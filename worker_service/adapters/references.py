"""References of each tenant with the versions that they stand for here; a name moves to a new version without a gap.

A resolved reference is trusted for a bounded time, long while the store tells of changes, then the store is asked for
the next request. If it does not answer, a resident version is served on. If it has moved, the old version is
served while the new one is prepared; then the name flips at once. A request that needs a revision is served by what the
reference stood for then or later: as far as the watch heard, else by the answer to a question that began after it came.
"""

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog

from hotslot.errors import CatalogBehindError, HotslotError
from hotslot.ids import Digest, TenantId
from hotslot.references import Reference
from hotslot.single_flight import SingleFlight
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind
from worker_service.adapters.catalog_watch import CatalogWatch
from worker_service.adapters.known_reference import DEFAULT_LIMITS, DEFINITIVE, KnownReference, ReferenceLimits
from worker_service.adapters.swapping import Swaps, VersionHome
from worker_service.adapters.version import AdapterVersion, ReferenceKey, ReferenceResolver, catalog_of

log = structlog.get_logger(__name__)


class ReferenceCache:
    """References of one worker's tenants. Belongs to one event loop.

    Two reads, by how fresh they are: `resolve_current` for what serves a request, `resolve_known` for hints.
    """

    def __init__(
        self,
        resolver: ReferenceResolver,
        home: VersionHome,
        limits: ReferenceLimits = DEFAULT_LIMITS,
        watch: CatalogWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._home = home
        self.limits = limits
        self._watch = watch
        self._clock = clock
        self._swaps = Swaps(home, limits, clock, self._move_on)
        # Not a library's map: an entry that makes room ends its swap.
        self._entries: OrderedDict[ReferenceKey, KnownReference] = OrderedDict()
        self._refreshes: SingleFlight[ReferenceKey, AdapterVersion] = SingleFlight()

    async def resolve_current(self, tenant: TenantId, reference: Reference, min_revision: int = 0) -> AdapterVersion:
        """The version to serve a request that begins now. Raises what the resolver raises.

        The store was asked within `staleness_s`, or `watched_staleness_s` while the watch vouches for the tenant, or is
        asked now. A resident version waits `patience_s` for the answer, then is served unconfirmed.

        With a `min_revision` it is what the reference stood for at that revision or later, prepared or not; raises
        CatalogBehindError where the store's answer is of an earlier one.
        """
        key = (tenant, reference)
        # A revision is of the tenant's own catalog, and says nothing of another's.
        needs_revision = min_revision > 0 and catalog_of(key) == tenant
        return await (self._resolve_at(key, min_revision) if needs_revision else self._resolve(key))

    async def _resolve(self, key: ReferenceKey) -> AdapterVersion:
        entry = self._entries.get(key)
        if entry is None:
            return await self._refreshes.run(key, lambda: self._ask_and_settle(key))
        self._entries.move_to_end(key)
        if not self._is_old(key, entry):
            return entry.version
        refresh = self._refresh(key)
        patience_s = self.limits.patience_s if self._may_go_on(key, entry) else None
        done, _ = await asyncio.wait([refresh], timeout=patience_s)
        if done:
            return refresh.result()
        entry.checked_s, entry.confirmed = self._clock(), False
        return entry.version

    async def _resolve_at(self, key: ReferenceKey, min_revision: int) -> AdapterVersion:
        if self._held_at(key, min_revision) is not None:
            # Asked for by its age, as for any other request: while the store is away, what is known goes on serving.
            await self._resolve(key)
        held = self._held_at(key, min_revision)
        if held is None and key in self._refreshes:
            # Begun before this request came: its answer may be older than what was written.
            await asyncio.wait([self._refresh(key)])
            held = self._held_at(key, min_revision)
        if held is not None:
            return held
        entry = self._entries.get(key)
        if entry is not None:
            await asyncio.sleep(max(0.0, entry.behind_s + self.limits.behind_pause_s - self._clock()))
        # One question for all who wait, begun after they came.
        await self._refreshes.run(key, lambda: self._ask_and_settle(key))
        held, entry = self._held_at(key, min_revision), self._entries.get(key)
        if held is not None:
            return held
        if entry is None:
            # Dropped for a change that was heard of meanwhile.
            return await self._resolve_at(key, min_revision)
        if entry.failure is not None:
            raise entry.failure.with_traceback(None)
        entry.behind_s = self._clock()
        raise CatalogBehindError(entry.latest.revision, min_revision, retry_after_s=self.limits.behind_retry_s)

    def _held_at(self, key: ReferenceKey, min_revision: int) -> AdapterVersion | None:
        """The version that is known to have held at a revision or later."""
        entry = self._entries.get(key)
        return entry.version_at(min_revision, self._until(key)) if entry is not None else None

    def _until(self, key: ReferenceKey) -> Callable[[int], int]:
        return lambda known: self._watch.held_until(catalog_of(key), key[1], known) if self._watch else known

    def resolve_known(self, tenant: TenantId, reference: Reference) -> AdapterVersion | None:
        """The version that the reference stood for when the store was last asked, however long ago; never waits.

        Good enough to find a worker by. An old answer is renewed behind the caller's back; None while there is none,
        which is then asked for.
        """
        key = (tenant, reference)
        entry = self._entries.get(key)
        if entry is None or self._is_old(key, entry):
            self._refresh(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.version

    def peek(self, tenant: TenantId, reference: Reference) -> AdapterVersion | None:
        """The version that serves a reference; asks for nothing, and is no use of it."""
        entry = self._entries.get((tenant, reference))
        return entry.version if entry is not None else None

    async def begin_flip(self, tenant: TenantId, reference: Reference, min_revision: int = 0) -> AdapterVersion:
        """Ask the store which version to `flip` a reference to; a `min_revision` makes do with what is asked just now.

        Raises what the resolver raises, and CatalogBehindError.
        """
        key = (tenant, reference)
        needed = min_revision if catalog_of(key) == tenant else 0
        if needed and key in self._refreshes:
            await asyncio.wait([self._refresh(key)])
        entry = self._entries.get(key)
        known = entry.just_answered(self._clock(), needed, self._until(key), self.limits) if entry and needed else None
        version = known or await self._ask(key)
        if known is None and version.revision < needed:
            raise CatalogBehindError(version.revision, min_revision, retry_after_s=self.limits.behind_retry_s)
        return version

    def flip(self, version: AdapterVersion) -> AdapterVersion | None:
        """Serve this version under its reference from now on; returns what was served before."""
        key = (version.tenant, version.reference)
        entry = self._entries.get(key)
        if entry is None:
            self._add(key, version)
            return None
        entry.end_swap()
        previous, latest = entry.version, entry.latest
        entry.version = entry.latest = version
        entry.answered(self._clock(), confirmed=True)
        entry.failed_digest = None
        if previous.digest != version.digest:
            log.info("reference_moved", reference=str(version.reference), old=previous.digest, new=version.digest)
            self._home.moved(previous, version)
        if version.revision < latest.revision and version.digest != latest.digest:
            # It took so long to be brought here that the name had moved on.
            self._refresh(key)
        return previous

    def forget(self, tenant: TenantId, digest: Digest) -> None:
        """Ask the store again before this version is served to the tenant under any reference."""
        stale = [key for key, entry in self._entries.items() if key[0] == tenant and entry.version.digest == digest]
        for key in stale:
            self._drop(key)

    def apply(self, tenant: TenantId, change: CatalogChange) -> None:
        """Something changed in the catalog: what it concerns is asked again now, or at its next use if it is gone."""
        for key in {*self._entries, *self._refreshes.keys()}:
            entry = self._entries.get(key)
            served = entry.version.digest if entry is not None else None
            if catalog_of(key) != tenant or not change.concerns(key[1], served):
                continue
            if key in self._refreshes:
                # The answer under way may be older than the change, so the store is asked once more after it.
                self._refreshes.again(key, functools.partial(self._ask_and_settle, key))
            match change.kind:
                case ChangeKind.POLICY_CHANGED:
                    if entry is not None:
                        self._refresh(key)
                case ChangeKind.TAG_MOVED:
                    if entry is None or 0 < change.revision <= entry.latest.revision:
                        continue  # an answer of that revision or a later one knows of it
                    # Moved back to what is served: a swap to what it had moved to meanwhile must end.
                    if entry.version.digest != change.digest or entry.swap is not None:
                        entry.confirmed = False
                        self._refresh(key)
                case _:
                    self._drop(key)

    def learn(self, version: AdapterVersion) -> None:
        """Take in what a reference stands for from its version's revision on, as the store told it unasked."""
        entry = self._entries.get(key := (version.tenant, version.reference))
        # An answer under way would come after this one, and may be older.
        if entry is not None and key not in self._refreshes and 0 < entry.latest.revision < version.revision:
            self._settle(key, replace(version, policy=entry.latest.policy))

    async def resync(self, tenant: TenantId) -> int:
        """Ask again for every reference of a tenant.

        Returns a revision that all answers are at least from, 0 when nothing is left. Raises the store's errors.
        """
        revisions, keys = [], [key for key in self._entries if catalog_of(key) == tenant]
        for key in keys:
            self._entries[key].doubt()
        for key in keys:
            with suppress(*DEFINITIVE):
                version = await self._ask(key)
                revisions.append(version.revision)
                self._settle(key, version)
        return min(revisions, default=0)

    async def close(self) -> None:
        """Cancel what is under way and wait until it has ended."""
        swaps = [entry.swap[1] for entry in self._entries.values() if entry.swap is not None]
        for task in swaps:
            task.cancel()
        await asyncio.gather(self._refreshes.close(), *swaps, return_exceptions=True)

    def _is_old(self, key: ReferenceKey, entry: KnownReference) -> bool:
        is_watched = self._watch is not None and self._watch.is_live(catalog_of(key))
        return entry.is_old(self._clock(), self.limits, is_watched=is_watched)

    def _may_go_on(self, key: ReferenceKey, entry: KnownReference) -> bool:
        is_resident = self._home.is_resident(entry.version.digest)
        return is_resident and (catalog_of(key) == key[0] or entry.is_believed(self._clock(), self.limits))

    def _refresh(self, key: ReferenceKey) -> "asyncio.Task[AdapterVersion]":
        return self._refreshes.begin(key, lambda: self._ask_and_settle(key))

    async def _ask(self, key: ReferenceKey) -> AdapterVersion:
        try:
            version = await self._resolver.resolve(*key)
        except DEFINITIVE:
            self._drop(key)
            raise
        if version.revision and self._watch is not None:
            self._watch.note(catalog_of(key), version.revision)
        return version

    async def _ask_and_settle(self, key: ReferenceKey) -> AdapterVersion:
        try:
            fresh = await self._ask(key)
        except HotslotError as exc:
            entry = self._entries.get(key)
            if entry is None or not self._may_go_on(key, entry):
                raise
            log.warning("serving_unconfirmed", reference=str(key[1]), digest=entry.version.digest, why=exc.message)
            entry.checked_s, entry.confirmed, entry.failure = self._clock(), False, exc
            return entry.version
        return self._settle(key, fresh)

    def _settle(self, key: ReferenceKey, fresh: AdapterVersion) -> AdapterVersion:
        """Take in an answer of the store; returns what to serve now."""
        entry = self._entries.get(key)
        if entry is None:
            return self._add(key, fresh).version
        entry.answered(self._clock(), confirmed=fresh.digest == entry.version.digest)
        entry.latest, entry.failure = fresh, None
        if fresh.digest == entry.version.digest:
            entry.version = fresh
            entry.end_swap()
        elif not self._home.is_resident(entry.version.digest):
            self.flip(fresh)
        else:
            self._swaps.begin(key[1], entry, fresh)
        return entry.version

    def _move_on(self, entry: KnownReference, ready: AdapterVersion) -> None:
        if self._entries.get((ready.tenant, ready.reference)) is entry:
            self.flip(ready)

    def _add(self, key: ReferenceKey, version: AdapterVersion) -> KnownReference:
        entry = self._entries[key] = KnownReference(version, self._clock())
        while len(self._entries) > self.limits.max_entries:
            self._drop(next(iter(self._entries)))
        return entry

    def _drop(self, key: ReferenceKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.end_swap()
