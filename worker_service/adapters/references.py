"""What each tenant's references stand for here, and how a name moves to a new version without a gap.

A resolved reference is trusted for a bounded time, long while the store tells of changes by itself and short while it
does not; then the store is asked again before the next request is served. If it does not answer, a resident version
keeps being served. If the reference has moved, the old version keeps being served while the new one is prepared beside
it; then the name flips at once for all new requests. If preparing fails, the old one stays and the failure is reported.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from hotslot.errors import ForbiddenError, HotslotError, InvalidAdapterError, InvalidRequestError, NotFoundError
from hotslot.ids import Digest, TenantId
from hotslot.references import Reference
from worker_service.adapters.catalog_watch import CatalogChange, ChangeKind
from worker_service.adapters.version import AdapterVersion

log = structlog.get_logger(__name__)

ReferenceKey = tuple[TenantId, Reference]

# The store has spoken: what was served under this reference must not be served any more.
_DEFINITIVE = (NotFoundError, ForbiddenError, InvalidRequestError, InvalidAdapterError)


class Resolver(Protocol):
    """Who knows what references stand for."""

    async def resolve(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """Ask now; raises HotslotError."""
        ...


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """The bounds of the cache."""

    staleness_s: float = 2.0
    """How long an answer of the store is trusted."""
    watched_staleness_s: float = 30.0
    """The same while changes are heard of, if it is longer."""
    patience_s: float = 1.0
    """How long a request whose version is resident waits for a slow store before it is served without an answer."""
    swap_retry_s: float = 10.0
    """After a failed swap, when to try the same version again."""
    max_entries: int = 10_000

    def trusted_s(self, watched: bool) -> float:
        """How long an answer is trusted."""
        return max(self.staleness_s, self.watched_staleness_s) if watched else self.staleness_s


@dataclass(slots=True)
class _Swap:
    """A newer version being prepared."""

    version: AdapterVersion
    task: "asyncio.Task[None]"


@dataclass(slots=True)
class _Entry:
    """One reference of one tenant."""

    version: AdapterVersion
    checked_s: float
    """When the store was last asked, answered or not."""
    confirmed: bool = True
    """Whether the store said so when it was last asked, and nothing is on its way."""
    swap: _Swap | None = None
    failed_digest: Digest | None = None
    failed_s: float = 0.0


@dataclass(slots=True)
class ReferenceCache:
    """The entries. Belongs to one event loop."""

    resolver: Resolver
    is_resident: Callable[[Digest], bool]
    prepare: Callable[[AdapterVersion], Awaitable[None]]
    """Brings a version to where it can be served from at once; raises HotslotError."""
    on_flip: Callable[[AdapterVersion, AdapterVersion], None]
    """Told that a name moved from an old to a new version."""
    limits: ReferenceLimits = field(default_factory=ReferenceLimits)
    clock: Callable[[], float] = time.monotonic
    is_watched: Callable[[TenantId], bool] = lambda tenant: False  # whether changes to its adapters are heard of
    on_answer: Callable[[TenantId, int], None] = lambda tenant, revision: None
    _entries: OrderedDict[ReferenceKey, _Entry] = field(default_factory=OrderedDict)
    _refreshes: "dict[ReferenceKey, asyncio.Task[AdapterVersion]]" = field(default_factory=dict)
    # Something changed while the store was being asked, so its answer may be older.
    _overtaken: set[ReferenceKey] = field(default_factory=set)

    async def current(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """The version to serve a request that begins now. Raises what the resolver raises."""
        key = (tenant, reference)
        entry = self._entries.get(key)
        if entry is None:
            return await asyncio.shield(self._refresh(key))
        self._entries.move_to_end(key)
        if not self._is_old(key, entry):
            return entry.version
        refresh = self._refresh(key)
        patience_s = self.limits.patience_s if self.is_resident(entry.version.digest) else None
        done, _ = await asyncio.wait([refresh], timeout=patience_s)
        if done:
            return refresh.result()
        entry.checked_s, entry.confirmed = self.clock(), False
        return entry.version

    async def hint(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """The version that the reference stood for when the store was last asked: good enough to find a worker by.

        An old answer is renewed behind the caller's back. Raises what the resolver raises when there is none.
        """
        key = (tenant, reference)
        version = self.glance(tenant, reference)
        if version is None:
            return await asyncio.shield(self._refresh(key))
        self._entries.move_to_end(key)
        return version

    def glance(self, tenant: TenantId, reference: Reference) -> AdapterVersion | None:
        """What `hint` would say, without waiting: None while nothing is known, which is then asked for."""
        key = (tenant, reference)
        entry = self._entries.get(key)
        if entry is None or self._is_old(key, entry):
            self._refresh(key)
        return entry.version if entry is not None else None

    async def ask(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        """What the store says now, whatever is cached; nothing flips. Raises what the resolver raises."""
        try:
            version = await self.resolver.resolve(tenant, reference)
        except _DEFINITIVE:
            self._drop((tenant, reference))
            raise
        if version.revision:
            self.on_answer(tenant, version.revision)
        return version

    def peek(self, tenant: TenantId, reference: Reference) -> AdapterVersion | None:
        """What is served under the reference now, without asking anybody."""
        entry = self._entries.get((tenant, reference))
        return entry.version if entry is not None else None

    def flip(self, version: AdapterVersion) -> AdapterVersion | None:
        """Serve this version under its reference from now on; returns what was served before."""
        key = (version.tenant, version.reference)
        entry = self._entries.get(key)
        if entry is None:
            self._add(key, version)
            return None
        self._end_swap(entry)
        previous, entry.version = entry.version, version
        entry.checked_s, entry.confirmed, entry.failed_digest = self.clock(), True, None
        if previous.digest != version.digest:
            log.info("reference_moved", reference=str(version.reference), old=previous.digest, new=version.digest)
            self.on_flip(previous, version)
        return previous

    def forget(self, tenant: TenantId, digest: Digest) -> None:
        """Ask the store again before this version is served to the tenant under any reference."""
        stale = [key for key, entry in self._entries.items() if key[0] == tenant and entry.version.digest == digest]
        for key in stale:
            self._drop(key)

    def apply(self, tenant: TenantId, change: CatalogChange) -> None:
        """Something changed in the catalog: what it concerns is asked again now, or at its next use if it is gone."""
        for key in [key for key in {**self._entries, **self._refreshes} if key[0] == tenant]:
            entry = self._entries.get(key)
            if not change.concerns(key[1], entry.version.digest if entry is not None else None):
                continue
            if key in self._refreshes:
                self._overtaken.add(key)
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

    async def ask_all(self, tenant: TenantId) -> int:
        """Ask again for every reference of a tenant.

        Returns a revision that all answers are at least from, 0 when nothing is left. Raises the store's errors.
        """
        revisions = []
        for key in [key for key in self._entries if key[0] == tenant]:
            with suppress(*_DEFINITIVE):
                version = await self.ask(*key)
                revisions.append(version.revision)
                self._settle(key, version)
        return min(revisions, default=0)

    async def close(self) -> None:
        """Cancel what is under way and wait until it has ended."""
        swaps = [entry.swap.task for entry in self._entries.values() if entry.swap is not None]
        tasks = [*self._refreshes.values(), *swaps]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_old(self, key: ReferenceKey, entry: _Entry) -> bool:
        return self.clock() - entry.checked_s >= self.limits.trusted_s(entry.confirmed and self.is_watched(key[0]))

    def _refresh(self, key: ReferenceKey) -> "asyncio.Task[AdapterVersion]":
        """The one question to the store that is under way for a reference."""
        task = self._refreshes.get(key)
        if task is None:
            task = asyncio.create_task(self._ask_and_settle(key), name=f"resolve {key[1]}")
            self._refreshes[key] = task
            task.add_done_callback(lambda done: self._refreshed(key, done))
        return task

    def _refreshed(self, key: ReferenceKey, task: "asyncio.Task[AdapterVersion]") -> None:
        del self._refreshes[key]
        if task.cancelled():
            return
        task.exception()  # marks it as seen when nobody waits any more
        if key in self._overtaken:
            self._overtaken.discard(key)
            self._refresh(key)

    async def _ask_and_settle(self, key: ReferenceKey) -> AdapterVersion:
        try:
            fresh = await self.ask(*key)
        except HotslotError as exc:
            entry = self._entries.get(key)
            if entry is None or not self.is_resident(entry.version.digest):
                raise
            log.warning("serving_unconfirmed", reference=str(key[1]), digest=entry.version.digest, why=exc.message)
            entry.checked_s, entry.confirmed = self.clock(), False
            return entry.version
        return self._settle(key, fresh)

    def _settle(self, key: ReferenceKey, fresh: AdapterVersion) -> AdapterVersion:
        """Take in an answer of the store; returns what to serve now."""
        entry = self._entries.get(key)
        if entry is None:
            return self._add(key, fresh).version
        entry.checked_s, entry.confirmed = self.clock(), fresh.digest == entry.version.digest
        if fresh.digest == entry.version.digest:
            entry.version = fresh
            self._end_swap(entry)
        elif not self.is_resident(entry.version.digest):
            self.flip(fresh)
        else:
            self._begin_swap(key, entry, fresh)
        return entry.version

    def _begin_swap(self, key: ReferenceKey, entry: _Entry, fresh: AdapterVersion) -> None:
        if entry.swap is not None and entry.swap.version.digest == fresh.digest:
            return
        if entry.failed_digest == fresh.digest and self.clock() - entry.failed_s < self.limits.swap_retry_s:
            return
        self._end_swap(entry)
        task = asyncio.create_task(self._swap(key, entry, fresh), name=f"swap {key[1]}")
        entry.swap = _Swap(fresh, task)

    async def _swap(self, key: ReferenceKey, entry: _Entry, fresh: AdapterVersion) -> None:
        try:
            await self.prepare(fresh)
        except HotslotError as exc:
            entry.swap, entry.failed_digest, entry.failed_s = None, fresh.digest, self.clock()
            log.warning(
                "swap_failed", reference=str(key[1]), kept=entry.version.digest, new=fresh.digest, why=exc.message
            )
            return
        entry.swap = None
        if self._entries.get(key) is entry:
            self.flip(fresh)

    def _end_swap(self, entry: _Entry) -> None:
        if entry.swap is not None:
            entry.swap.task.cancel()
            entry.swap = None

    def _add(self, key: ReferenceKey, version: AdapterVersion) -> _Entry:
        entry = self._entries[key] = _Entry(version, self.clock())
        while len(self._entries) > self.limits.max_entries:
            self._drop(next(iter(self._entries)))
        return entry

    def _drop(self, key: ReferenceKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._end_swap(entry)
