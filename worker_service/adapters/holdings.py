"""Holdings: what a worker has of each version, and what keeps it there. Pure state; times are passed in.

A version is in host memory under a byte budget. The version to evict for another is the least recently used one, of the
tenant that has most there, that has neither a user nor a pin:

- users: requests in flight, and those that wait for its load;
- pins of references, which also keep its slots (PinAdapter, or a swap of a pinned reference);
- pins of policies, which keep it in host memory for a tenant (`Keeper`).

Tiers: a first user takes a version from disk or nowhere to `loading`, its load to `host`; the engine's snapshots tell
which versions of host memory are in slots. Only an eviction or an unload takes a version out of host memory.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from hotslot.contract.control import AdapterTier
from hotslot.errors import QuotaExceededError
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId
from shared.fleet.records import Resident
from worker_service.adapters.holding import Held, Holding, HostRoom, PinOwner
from worker_service.adapters.host_shares import Kept, leaving
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.messages import AdapterWeights
from worker_service.engine.snapshot import SlotHolder

PRUNE_ABOVE = 4_096
RETRY_AFTER_S = 0.5


class Holdings:
    """All versions of one worker. **Invariant**: a version with a user or a pin is not evicted, the budget holds."""

    def __init__(
        self, budget_bytes: int, has_blob: Callable[[TenantId, Digest], bool] = lambda tenant, digest: False
    ) -> None:
        """`has_blob` tells which weights blobs the disk tier has, by tenant."""
        self.budget_bytes = budget_bytes
        self._has_blob = has_blob
        self._holdings: dict[Digest, Holding] = {}
        self._host: OrderedDict[Digest, Holding] = OrderedDict()
        """Versions in host memory, least recently used first."""
        self._pins: dict[PinOwner, Digest] = {}
        self._slots: dict[Digest, SlotHolder] = {}
        self._host_bytes = 0
        self._reserved_bytes = 0
        self._num_uses = 0
        self.num_evicted = 0
        """Versions that left host memory since the start."""
        self._prune_above = PRUNE_ABOVE

    @property
    def used_bytes(self) -> int:
        """Bytes of host memory, those reserved by loads under way included; never more than the budget."""
        return self._host_bytes + self._reserved_bytes

    def of(self, digest: Digest) -> Holding:
        """The state of a version, to be read only; empty where the worker has nothing of it."""
        return self._holdings.get(digest) or Holding(digest)

    def is_resident(self, digest: Digest) -> bool:
        """True for a version in host memory: it can be served without the store."""
        return digest in self._host

    def is_read(self, tenant: TenantId, digest: Digest) -> bool:
        """True for a version in host memory whose bytes the tenant has brought itself."""
        holding = self._host.get(digest)
        return holding is not None and tenant in holding.readers

    def note_read(self, tenant: TenantId, digest: Digest) -> None:
        """Note that a tenant has brought a version's bytes, which are in host memory."""
        self._host[digest].readers.add(tenant)

    def evictable(self) -> Iterator[Digest]:
        """Versions that may be evicted from host memory, least recently used first."""
        return (digest for digest, holding in self._host.items() if not holding.is_kept)

    def hold(self, digest: Digest, tenant: TenantId = DEFAULT_TENANT) -> AdapterWeights | None:
        """Count one more user, of a tenant, until `release`; returns the weights that it keeps in host memory.

        None where there are none: then the user keeps what a load will bring.
        """
        holding = self._record(digest)
        holding.users += 1
        holding.users_of[tenant] += 1
        if holding.weights is not None:
            self._host.move_to_end(digest)
        return holding.weights

    def release(self, digest: Digest, tenant: TenantId = DEFAULT_TENANT) -> None:
        """End one `hold`."""
        holding = self._holdings[digest]
        assert holding.users > 0, digest
        holding.users -= 1
        holding.users_of[tenant] -= 1
        if not holding.users_of[tenant]:
            del holding.users_of[tenant]
        self._tidy(holding)

    def reserve(self, digest: Digest, size_bytes: int, tenant: TenantId | None = None) -> HostRoom:
        """Make room for a load, evicting versions: of the tenants that have most, where it is said for which it is.

        Raises QuotaExceededError, and then evicts none.
        """
        self._make_room(digest, size_bytes, tenant)
        self._reserved_bytes += size_bytes
        return HostRoom(digest, size_bytes, tenant)

    def commit(self, room: HostRoom, weights: AdapterWeights) -> AdapterWeights:
        """Bring a version to host memory in its true size; raises QuotaExceededError as `reserve`.

        The reservation is over either way. Returns the weights that are there: those of another load that came first.
        """
        self.cancel(room)
        there = self.of(room.digest).weights
        if there is not None:
            return there
        self._make_room(room.digest, weights.size_bytes, room.tenant)
        holding = self._host[room.digest] = self._record(room.digest)
        holding.weights = weights
        self._host_bytes += weights.size_bytes
        return weights

    def cancel(self, room: HostRoom) -> None:
        """Give reserved room back; again is harmless."""
        self._reserved_bytes -= room.size_bytes
        room.size_bytes = 0

    def drop(self, digest: Digest) -> bool:
        """Evict this version from host memory; False where a user or a pin keeps it."""
        holding = self._host.get(digest)
        if holding is not None and not holding.is_kept:
            self._evict(holding)
        return digest not in self._host

    def pinned(self, owner: PinOwner) -> Digest | None:
        """Version that the owner's pin is on."""
        return self._pins.get(owner)

    def reference_pins(self) -> dict[PinOwner, Digest]:
        """Versions that pins of references are on."""
        return dict(self._pins)

    def pin(self, owner: PinOwner, digest: Digest) -> Digest | None:
        """Keep a version of host memory, and its slots, for an owner, whose pin moves from another version.

        Returns that one if nothing keeps its slots any more.
        """
        holding = self._host[digest]
        freed = self.unpin(owner) if self._pins.get(owner) != digest else None
        self._pins[owner] = digest
        holding.pins.add(owner)
        return freed

    def unpin(self, owner: PinOwner) -> Digest | None:
        """End the owner's pin; returns its version if nothing keeps that one's slots any more."""
        digest = self._pins.pop(owner, None)
        if digest is None:
            return None
        self._holdings[digest].pins.discard(owner)
        return digest if not self.of(digest).keeps_slots else None

    @contextmanager
    def pinning(self, digest: Digest) -> Iterator[None]:
        """Count an activation that will pin: it keeps the slots too."""
        holding = self._record(digest)
        holding.num_pinning += 1
        try:
            yield
        finally:
            holding.num_pinning -= 1
            self._tidy(holding)

    def keep(self, tenant: TenantId, digest: Digest) -> None:
        """Keep a version of host memory there for a tenant's policy."""
        self._host[digest].policies.add(tenant)

    def stop_keeping(self, tenant: TenantId, digest: Digest) -> None:
        """End one `keep`."""
        self._holdings[digest].policies.remove(tenant)

    def kept(self) -> set[tuple[TenantId, Digest]]:
        """Versions that policies keep, with the tenants for which they do."""
        return {(tenant, digest) for digest, holding in self._host.items() for tenant in holding.policies}

    def see_slots(self, holders: Iterable[SlotHolder]) -> None:
        """Take in the engine's word on what is in slots."""
        self._slots = {holder.digest: holder for holder in holders}

    def note(self, version: AdapterVersion, now_s: float) -> None:
        """Note that a request of a tenant used a version."""
        holding = self._record(version.digest)
        if version.tenant not in holding.uses:
            if self._num_uses >= self._prune_above:
                self.prune()
                holding = self._record(version.digest)
            self._num_uses += 1
        holding.note(version, now_s)

    def forget(self, tenant: TenantId, digest: Digest) -> None:
        """Take a version out of a tenant's sight."""
        holding = self.of(digest)
        self._num_uses -= holding.uses.pop(tenant, None) is not None
        self._tidy(holding)

    def of_tenant(self, tenant: TenantId) -> list[Held]:
        """Everything that a tenant has used and the worker still has in any tier, the latest used first."""
        self.prune()
        digests = [digest for digest, holding in self._holdings.items() if tenant in holding.uses]
        held = (self.held(tenant, digest) for digest in digests)
        return sorted(held, key=lambda item: item.last_used_s, reverse=True)

    def held(self, tenant: TenantId, digest: Digest) -> Held:
        """One version as a tenant that has used it sees it."""
        holding = self._holdings[digest]
        blob = holding.weights_digest
        return holding.held_by(
            tenant, self._slots.get(digest), on_disk=blob is not None and self._has_blob(tenant, blob)
        )

    def residency(
        self, max_users: int, demand: Callable[[Digest], float], slots_for: Callable[[int], int]
    ) -> tuple[Resident, ...]:
        """Everything that the fleet is told of: versions in host memory and slots, and on disk what tenants used."""
        residents = (
            holding.resident(self._slots.get(digest), max_users, demand, slots_for, on_disk=self._is_on_disk(holding))
            for digest, holding in self._holdings.items()
        )
        return tuple(sorted(filter(None, residents), key=lambda resident: resident.digest))

    def prune(self) -> None:
        """Forget versions that are in no tier; afterwards memory follows what the worker has."""
        for holding in list(self._holdings.values()):
            if self._tier(holding) is AdapterTier.UNSPECIFIED:
                holding.uses.clear()
                self._tidy(holding)
        self._num_uses = sum(len(holding.uses) for holding in self._holdings.values())
        self._prune_above = max(PRUNE_ABOVE, 2 * self._num_uses)

    def _tier(self, holding: Holding) -> AdapterTier:
        return holding.tier(self._slots.get(holding.digest), on_disk=self._is_on_disk(holding))

    def _is_on_disk(self, holding: Holding) -> bool:
        digest = holding.weights_digest
        return digest is not None and any(self._has_blob(tenant, digest) for tenant in holding.uses)

    def _record(self, digest: Digest) -> Holding:
        return self._holdings.setdefault(digest, self.of(digest))

    def _tidy(self, holding: Holding) -> None:
        if holding.is_empty:
            self._holdings.pop(holding.digest, None)

    def tiers(self) -> Counter[AdapterTier]:
        """Numbers of versions by the fastest tier that has them."""
        return Counter(self._tier(holding) for holding in self._holdings.values())

    def resident(self) -> Iterator[tuple[Holding, SlotHolder | None]]:
        """Versions in host memory, each with its slots."""
        return ((holding, self._slots.get(digest)) for digest, holding in self._host.items())

    def loading(self) -> Iterator[Holding]:
        """Versions that users wait for."""
        return (holding for holding in self._holdings.values() if holding.users and holding.weights is None)

    def _evict(self, holding: Holding) -> None:
        self.num_evicted += 1
        del self._host[holding.digest]
        self._host_bytes -= holding.size_bytes
        holding.weights = None
        holding.readers.clear()
        self._tidy(holding)

    def _make_room(self, digest: Digest, size_bytes: int, tenant: TenantId | None) -> None:
        if size_bytes > self.budget_bytes:
            raise QuotaExceededError(
                f"adapter {digest} takes {size_bytes} bytes of host memory, the worker's whole budget is "
                f"{self.budget_bytes}; raise HOTSLOT_HOST_CACHE_BYTES",
                subject="host_cache_bytes",
            )
        needed = self.used_bytes + size_bytes - self.budget_bytes
        if needed <= 0:
            return
        kept = [
            Kept(each, holding.size_bytes, holding.owners if tenant is not None else (), not holding.is_kept)
            for each, holding in self._host.items()
        ]
        left = leaving(kept, [tenant] if tenant is not None else [], size_bytes, needed)
        if left is None:
            raise QuotaExceededError(
                f"no room in host memory for adapter {digest}: {self.used_bytes} of {self.budget_bytes} bytes are "
                "taken by adapters in use; try again, or raise HOTSLOT_HOST_CACHE_BYTES",
                subject="host_cache_bytes",
                retry_after_s=RETRY_AFTER_S,
            )
        for each in left:
            self._evict(self._host[each])
