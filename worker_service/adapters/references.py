"""References of each tenant with the versions that they stand for here; a name moves to a new version without a gap.

A resolved reference is trusted for a bounded time, long while the store tells of changes by itself and short while it
does not; then the store is asked again before the next request is served. If it does not answer, a resident version
keeps being served. If the reference has moved, the old version keeps being served while the new one is prepared beside
it; then the name flips at once for all new requests. If preparing fails, the old one stays and the failure is reported.
"""

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from hotslot.errors import ForbiddenError, HotslotError, InvalidAdapterError, InvalidRequestError, NotFoundError
from hotslot.ids import Digest, TenantId
from hotslot.references import Reference
from hotslot.single_flight import SingleFlight
from worker_service.adapters.catalog_watch import CatalogChange, CatalogWatch, ChangeKind
from worker_service.adapters.version import AdapterVersion

log = structlog.get_logger(__name__)

ReferenceKey = tuple[TenantId, Reference]

# The store has spoken: what was served under this reference must not be served any more.
_DEFINITIVE = (NotFoundError, ForbiddenError, InvalidRequestError, InvalidAdapterError)


class ReferenceResolver(Protocol):
    """Store, as far as references go."""

    async def resolve(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """Ask now; raises HotslotError."""
        ...


class VersionHome(Protocol):
    """Place of the versions that references stand for."""

    def is_resident(self, digest: Digest) -> bool:
        """True for a version that can be served without the store."""
        ...

    async def prepare(self, version: AdapterVersion) -> None:
        """Bring a version to where it can be served from at once; raises HotslotError."""
        ...

    def moved(self, old: AdapterVersion, new: AdapterVersion) -> None:
        """Hear that a name moved from an old to a new version."""
        ...


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """The bounds of the cache."""

    staleness_s: float = 2.0
    """Time for which an answer of the store is trusted."""
    watched_staleness_s: float = 30.0
    """The same while changes are heard of, if it is longer."""
    patience_s: float = 1.0
    """Longest wait of a request whose version is resident for a slow store before it is served without an answer."""
    swap_retry_s: float = 10.0
    """After a failed swap, when to try the same version again."""
    max_entries: int = 10_000


@dataclass(slots=True)
class _Entry:
    """One reference of one tenant."""

    version: AdapterVersion
    checked_s: float
    """Time of the last question to the store, answered or not."""
    confirmed: bool = True
    """The store said so when it was last asked, and no newer version is on its way."""
    swap: "tuple[Digest, asyncio.Task[None]] | None" = None
    """A newer version being prepared."""
    failed_digest: Digest | None = None
    failed_s: float = 0.0


class ReferenceCache:
    """References of one worker's tenants. Belongs to one event loop.

    Two reads, by how fresh they are: `resolve_current` for what serves a request, `resolve_known` for hints.
    """

    def __init__(
        self,
        resolver: ReferenceResolver,
        home: VersionHome,
        limits: ReferenceLimits = ReferenceLimits(),
        watch: CatalogWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._home = home
        self.limits = limits
        self._watch = watch
        self._clock = clock
        # Not a library's map: an entry that makes room ends its swap.
        self._entries: OrderedDict[ReferenceKey, _Entry] = OrderedDict()
        self._refreshes: SingleFlight[ReferenceKey, AdapterVersion] = SingleFlight()

    async def resolve_current(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """The version to serve a request that begins now. Raises what the resolver raises.

        The store was asked within `staleness_s`, or `watched_staleness_s` while the watch vouches for the tenant, or is
        asked now. A resident version waits `patience_s` for the answer, then is served unconfirmed.
        """
        key = (tenant, reference)
        entry = self._entries.get(key)
        if entry is None:
            return await self._refreshes.run(key, lambda: self._ask_and_settle(key))
        self._entries.move_to_end(key)
        if not self._is_old(key, entry):
            return entry.version
        refresh = self._refresh(key)
        patience_s = self.limits.patience_s if self._home.is_resident(entry.version.digest) else None
        done, _ = await asyncio.wait([refresh], timeout=patience_s)
        if done:
            return refresh.result()
        entry.checked_s, entry.confirmed = self._clock(), False
        return entry.version

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

    async def begin_flip(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """Ask the store which version to `flip` a reference to, whatever is cached; raises what the resolver raises."""
        return await self._ask((tenant, reference))

    def flip(self, version: AdapterVersion) -> AdapterVersion | None:
        """Serve this version under its reference from now on; returns what was served before."""
        key = (version.tenant, version.reference)
        entry = self._entries.get(key)
        if entry is None:
            self._add(key, version)
            return None
        self._end_swap(entry)
        previous, entry.version = entry.version, version
        entry.checked_s, entry.confirmed, entry.failed_digest = self._clock(), True, None
        if previous.digest != version.digest:
            log.info("reference_moved", reference=str(version.reference), old=previous.digest, new=version.digest)
            self._home.moved(previous, version)
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
            if key[0] != tenant or not change.concerns(key[1], entry.version.digest if entry is not None else None):
                continue
            if key in self._refreshes:
                # The answer under way may be older than the change, so the store is asked once more after it.
                self._refresh(key).add_done_callback(functools.partial(self._ask_again, key))
            match change.kind:
                case ChangeKind.POLICY_CHANGED:
                    if entry is not None:
                        self._refresh(key)
                case ChangeKind.TAG_MOVED:
                    # Moved back to what is served: a swap to what it had moved to meanwhile must end.
                    if entry is not None and (entry.version.digest != change.digest or entry.swap is not None):
                        entry.confirmed = False
                        self._refresh(key)
                case _:
                    self._drop(key)

    async def resync(self, tenant: TenantId) -> int:
        """Ask again for every reference of a tenant.

        Returns a revision that all answers are at least from, 0 when nothing is left. Raises the store's errors.
        """
        revisions = []
        for key in [key for key in self._entries if key[0] == tenant]:
            with suppress(*_DEFINITIVE):
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

    def _is_old(self, key: ReferenceKey, entry: _Entry) -> bool:
        trusted_s = self.limits.staleness_s
        if entry.confirmed and self._watch is not None and self._watch.is_live(key[0]):
            trusted_s = max(trusted_s, self.limits.watched_staleness_s)
        return self._clock() - entry.checked_s >= trusted_s

    def _refresh(self, key: ReferenceKey) -> "asyncio.Task[AdapterVersion]":
        return self._refreshes.begin(key, lambda: self._ask_and_settle(key))

    def _ask_again(self, key: ReferenceKey, asked: "asyncio.Task[AdapterVersion]") -> None:
        if not asked.cancelled():
            self._refresh(key)

    async def _ask(self, key: ReferenceKey) -> AdapterVersion:
        try:
            version = await self._resolver.resolve(*key)
        except _DEFINITIVE:
            self._drop(key)
            raise
        if version.revision and self._watch is not None:
            self._watch.note(key[0], version.revision)
        return version

    async def _ask_and_settle(self, key: ReferenceKey) -> AdapterVersion:
        try:
            fresh = await self._ask(key)
        except HotslotError as exc:
            entry = self._entries.get(key)
            if entry is None or not self._home.is_resident(entry.version.digest):
                raise
            log.warning("serving_unconfirmed", reference=str(key[1]), digest=entry.version.digest, why=exc.message)
            entry.checked_s, entry.confirmed = self._clock(), False
            return entry.version
        return self._settle(key, fresh)

    def _settle(self, key: ReferenceKey, fresh: AdapterVersion) -> AdapterVersion:
        """Take in an answer of the store; returns what to serve now."""
        entry = self._entries.get(key)
        if entry is None:
            return self._add(key, fresh).version
        entry.checked_s, entry.confirmed = self._clock(), fresh.digest == entry.version.digest
        if fresh.digest == entry.version.digest:
            entry.version = fresh
            self._end_swap(entry)
        elif not self._home.is_resident(entry.version.digest):
            self.flip(fresh)
        else:
            self._begin_swap(key, entry, fresh)
        return entry.version

    def _begin_swap(self, key: ReferenceKey, entry: _Entry, fresh: AdapterVersion) -> None:
        if entry.swap is not None and entry.swap[0] == fresh.digest:
            return
        if entry.failed_digest == fresh.digest and self._clock() - entry.failed_s < self.limits.swap_retry_s:
            return
        self._end_swap(entry)
        entry.swap = fresh.digest, asyncio.create_task(self._swap(key, entry, fresh), name=f"swap {key[1]}")

    async def _swap(self, key: ReferenceKey, entry: _Entry, fresh: AdapterVersion) -> None:
        try:
            await self._home.prepare(fresh)
        except HotslotError as exc:
            entry.swap, entry.failed_digest, entry.failed_s = None, fresh.digest, self._clock()
            log.warning(
                "swap_failed", reference=str(key[1]), kept=entry.version.digest, new=fresh.digest, why=exc.message
            )
            return
        entry.swap = None
        if self._entries.get(key) is entry:
            self.flip(fresh)

    def _end_swap(self, entry: _Entry) -> None:
        if entry.swap is not None:
            entry.swap[1].cancel()
            entry.swap = None

    def _add(self, key: ReferenceKey, version: AdapterVersion) -> _Entry:
        entry = self._entries[key] = _Entry(version, self._clock())
        while len(self._entries) > self.limits.max_entries:
            self._drop(next(iter(self._entries)))
        return entry

    def _drop(self, key: ReferenceKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._end_swap(entry)
