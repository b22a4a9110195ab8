"""One version on a worker: where it is, what keeps it there, and who has used it. Pure state."""

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hotslot.contract.control import AdapterTier
from hotslot.contract.placement import Tier
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId
from hotslot.references import Reference
from shared.fleet.records import Resident
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.messages import AdapterWeights
from worker_service.engine.snapshot import SlotHolder

MAX_REFERENCES = 16
"""References of one tenant to one version that are remembered, those used last."""

PinOwner = tuple[TenantId, Reference]
"""A pin belongs to a tenant's reference and moves with it to a new version."""


@dataclass(frozen=True, slots=True)
class Held:
    """One version on this worker, as one tenant sees it."""

    digest: Digest
    references: tuple[str, ...]
    """Least recently used first."""
    tier: AdapterTier
    max_rank: int
    slots: tuple[int, ...]
    users: int
    """Requests that hold it."""
    pinned: bool
    """By one of the tenant's references, or for the tenant by its policy."""
    host_size_bytes: int
    last_used_s: float
    """On the monotonic clock."""


@dataclass(eq=False, slots=True)
class HostRoom:
    """Room in host memory that is reserved for a load under way; 0 bytes once that is over."""

    digest: Digest
    size_bytes: int
    tenant: TenantId | None = None


@dataclass(slots=True)
class Holding:
    """The state of one version. Users and pins keep it in host memory."""

    digest: Digest
    weights: AdapterWeights | None = None
    """In host memory."""
    users: int = 0
    """Requests that hold it; without weights they wait for its load."""
    num_pinning: int = 0
    """Activations under way that will pin it in slots."""
    pins: set[PinOwner] = field(default_factory=set)
    """Pins of references: they keep its slots too."""
    policies: set[TenantId] = field(default_factory=set)
    """Tenants whose policies keep it in host memory."""
    uses: dict[TenantId, dict[Reference, float]] = field(default_factory=dict)
    """By tenant the references that led to it, with the time of their last use, least recently used first."""
    readers: set[TenantId] = field(default_factory=set)
    """Tenants that brought its bytes themselves since it is in host memory; for others it is as if it was not there."""
    users_of: Counter[TenantId] = field(default_factory=Counter)
    """Requests that hold it, by tenant."""
    max_rank: int = 0
    ranks_in_slots: int = 0
    weights_digest: Digest | None = None

    @property
    def is_at_hand(self) -> bool:
        """True if it is in host memory or on its way there."""
        return self.weights is not None or self.users > 0

    @property
    def is_kept(self) -> bool:
        """True if it may not be evicted from host memory."""
        return bool(self.users or self.pins or self.policies)

    @property
    def is_pinned(self) -> bool:
        """True if a pin of a reference or a policy keeps it."""
        return bool(self.pins or self.policies)

    @property
    def keeps_slots(self) -> bool:
        """True if a pin keeps its slots, or is about to."""
        return bool(self.pins or self.num_pinning)

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in host memory."""
        return self.weights.size_bytes if self.weights is not None else 0

    @property
    def is_empty(self) -> bool:
        """True if nothing is left to know of it."""
        return self.weights is None and not (self.users or self.num_pinning or self.uses)

    def tier(self, slots: SlotHolder | None, *, on_disk: bool) -> AdapterTier:
        """Fastest tier that has it; UNSPECIFIED where none has. In slots alone it cannot be served."""
        if self.weights is not None:
            if slots is None:
                return AdapterTier.HOST
            return AdapterTier.SLOT if slots.ready else AdapterTier.LOADING
        if self.users:
            return AdapterTier.LOADING
        return AdapterTier.DISK if on_disk else AdapterTier.UNSPECIFIED

    def is_pinned_by(self, tenant: TenantId) -> bool:
        """True if a reference of this tenant pins it."""
        return any(owner == tenant for owner, _ in self.pins)

    def is_protected_from(self, tenant: TenantId) -> bool:
        """True if a tenant may not unload it: one of its references pins it, or any tenant's policy."""
        return bool(self.policies) or self.is_pinned_by(tenant)

    def is_shared_by(self, tenant: TenantId) -> bool:
        """True if another tenant uses it beside this one."""
        return any(user != tenant for user in self.uses)

    def note(self, version: AdapterVersion, now_s: float) -> None:
        """Note a use under the version's reference."""
        references = self.uses.get(version.tenant)
        if references is None:
            references = self.uses[version.tenant] = {}
            self.max_rank, self.weights_digest = version.manifest.max_rank, version.manifest.weights_digest
            self.ranks_in_slots = version.manifest.ranks_in_slots
        references.pop(version.reference, None)
        references[version.reference] = now_s
        if len(references) > MAX_REFERENCES:
            del references[next(iter(references))]

    @property
    def owners(self) -> Collection[TenantId]:
        """Tenants whose share of host memory it takes: those that used it or, before any did, those that brought it."""
        return self.uses.keys() or self.readers

    def last_used_s(self, tenant: TenantId) -> float:
        """Time of a tenant's latest use under any reference."""
        return max(self.uses[tenant].values(), default=-math.inf)

    def latest_users(self, most: int) -> list[tuple[TenantId, str]]:
        """Tenants that used it last, each with the adapter's name that it used last.

        Ordered by tenant, so that tenants that use it in turns change nothing. What nobody has used yet, as a version
        that is about to be published, is shown without a name, and to those alone who brought it.
        """
        if not self.uses:
            return [(tenant, "") for tenant in sorted(self.readers)[:most]]
        latest = sorted(self.uses, key=self.last_used_s, reverse=True)[:most]
        return [(tenant, str(next(reversed(self.uses[tenant])).name)) for tenant in sorted(latest)]

    def held_by(self, tenant: TenantId, slots: SlotHolder | None, *, on_disk: bool) -> Held:
        """Its state as a tenant that has used it sees it."""
        is_there = tenant in self.readers
        elsewhere = AdapterTier.DISK if on_disk and not self.users_of[tenant] else AdapterTier.LOADING
        return Held(
            digest=self.digest,
            references=tuple(map(str, self.uses[tenant])),
            # One that was evicted since it was loaded, or that others loaded: the next request brings it.
            tier=self.tier(slots, on_disk=on_disk) if is_there else elsewhere,
            max_rank=self.max_rank,
            slots=slots.slots if slots is not None and is_there else (),
            users=self.users_of[tenant] if is_there else 0,
            pinned=tenant in self.policies or self.is_pinned_by(tenant),
            host_size_bytes=self.size_bytes if is_there else 0,
            last_used_s=self.last_used_s(tenant),
        )

    def resident(
        self,
        slots: SlotHolder | None,
        max_users: int,
        demand: Callable[[Digest], float],
        slots_for: Callable[[int], int],
        *,
        on_disk: bool,
    ) -> Resident | None:
        """Its state as the fleet is told of it: in memory or, where it is not, on disk. None where it is in neither."""
        if self.weights is not None:
            tier = Tier.SLOT if slots is not None and slots.ready else Tier.HOST
        elif on_disk:
            tier = Tier.DISK
        else:
            return None
        (tenant, name), *others = self.latest_users(max_users) or [(DEFAULT_TENANT, "")]
        num_slots, users = slots_for(self.ranks_in_slots), tuple(others)
        return Resident(self.digest, tier, self.is_pinned, name, tenant, demand(self.digest), users, num_slots)
