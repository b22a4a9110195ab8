"""Records of a fleet: its workers, what each holds, and what changed; pure, as policy and coordination share them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, WorkerId

_DISTANCES = {
    tier: position for position, tier in enumerate((Tier.SLOT, Tier.HOST, Tier.DISK, Tier.NONE, Tier.UNSPECIFIED))
}

MEMORY_TIERS = (Tier.SLOT, Tier.HOST)


def distance_of(tier: Tier) -> int:
    """Distance of a tier from the slots: 0 for the fastest."""
    return _DISTANCES[tier]


@dataclass(frozen=True, slots=True)
class ReportedLoad:
    """Load of a worker."""

    running_sequences: int = 0
    waiting_sequences: int = 0
    max_sequences: int = 1
    """Rows that can run at once."""
    free_slots: int = 0
    num_slots: int = 0
    kv_usage: float = 0.0
    """Share of KV blocks in use, 0 to 1."""
    mean_in_flight: float | None = None
    """`in_flight` over the last half minute or so; None from workers that do not report it."""
    slots_each: float = 0.0
    """Mean of the slots that versions in memory take; 0 without any, and from workers that do not report it."""

    @property
    def in_flight(self) -> int:
        """Sequences that the worker has accepted and not finished."""
        return self.running_sequences + self.waiting_sequences


Abilities = tuple[Digest, str, int, int, int, int]
"""Base model, element type, and the sizes within which a worker serves."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Facts about a worker that stay the same from its start to its end."""

    worker_id: WorkerId
    endpoint: str
    """host:port of its InferenceService."""
    base_model_digest: Digest
    """The pool."""
    base_model: str
    dtype: str
    slot_rank: int
    start_time_s: float
    """Seconds since the Unix epoch."""
    epoch: int
    """Fencing number: of two workers that claim one endpoint, the larger wins. Never taken from Redis."""
    num_slots: int = 0
    max_rank: int = 0
    max_sequence_tokens: int = 0
    """0 while the model is being loaded, as the two above."""
    target_modules: str = ""
    """Last names of the modules that have slots, with commas between them; empty while that is not known, as from
    workers that do not report it. Not one of the abilities: workers of two versions share a fleet."""

    def serves_like(self, other: "WorkerInfo") -> bool:
        """Tell whether either worker may answer for the other: both accept the same requests, and compute alike."""
        return self.abilities == other.abilities

    @property
    def abilities(self) -> Abilities:
        """Abilities that workers have in common that serve alike."""
        sizes = self.slot_rank, self.num_slots, self.max_rank, self.max_sequence_tokens
        return self.base_model_digest, self.dtype, *sizes


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker that holds a lease."""

    info: WorkerInfo
    state: WorkerState
    load: ReportedLoad
    lease_expire_time_s: float
    """On Redis's clock, seconds since the Unix epoch."""
    residency_revision: int
    """Revision of the newest residency report; 0 before the first."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A version that a worker holds."""

    digest: Digest
    tier: Tier
    pinned: bool = False
    name: str = ""
    """The reference's name by which it was last served, for people."""
    tenant: TenantId = DEFAULT_TENANT
    """Tenant whose name that is; other tenants are shown their own."""
    demand: float = 0.0
    """Sequences of this version in flight here, by the rows that can run at once: its steps are coarse and slow
    (`shared.fleet.demand`), so that it seldom changes."""
    others: tuple[tuple[TenantId, str], ...] = ()
    """Further tenants that use the same content here, each with its own name for it."""
    num_slots: int = 0
    """Slots that it takes, by its rank and the worker's slot rank; 0 from workers that do not report it."""

    def seen_by(self, tenant: TenantId) -> "Resident | None":
        """As a tenant is shown it, under its own name alone; None when it did not use it here."""
        for user, name in ((self.tenant, self.name), *self.others):
            if user == tenant:
                return replace(self, tenant=user, name=name, others=())
        return None


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """Report of a worker on itself at one moment."""

    state: WorkerState
    load: ReportedLoad
    residents: tuple[Resident, ...]
    """Everything that it holds, in its fastest tier; at most one for each digest counts."""


@dataclass(frozen=True, slots=True)
class PlacedVersion:
    """A version on a worker. A hint: the worker's own word is the truth."""

    worker_id: WorkerId
    resident: Resident


def placed_for(tenant: TenantId, placements: Iterable[PlacedVersion]) -> list[PlacedVersion]:
    """Placements of a version as far as a tenant has used it there: where others have the same bytes shows nowhere."""
    seen = ((placed.worker_id, placed.resident.seen_by(tenant)) for placed in placements)
    return [PlacedVersion(worker_id, resident) for worker_id, resident in seen if resident is not None]


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool's workers at one moment."""

    workers: tuple[WorkerRecord, ...]
    """Those whose lease runs, by worker_id."""
    time_s: float
    """The moment, on Redis's clock."""
    since: str
    """Another one than before, or none: Redis has lost what it knew of the pool (`memory`)."""


@dataclass(frozen=True, slots=True)
class PlacementsView:
    """Placements of some versions at one moment."""

    placements: Mapping[Digest, tuple[PlacedVersion, ...]]
    time_s: float
    """As of `PoolView`."""
    since: str
    """As of `PoolView`."""


@dataclass(frozen=True, slots=True)
class PlacementChange:
    """Something that began, changed or ended."""

    revision: int
    worker_id: WorkerId
    digest: Digest
    before: Resident | None
    """None when the placement began."""
    after: Resident | None
    """None when the placement ended."""
