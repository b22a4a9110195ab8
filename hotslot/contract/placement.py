"""The fleet: which workers there are, which adapters they hold, which one to call."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from hotslot.contract.control import WorkerState


class Tier(StrEnum):
    """Tier of an adapter on a worker, fastest first."""

    UNSPECIFIED = "unspecified"
    SLOT = "slot"
    HOST = "host"
    DISK = "disk"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """Load of a worker."""

    running_sequences: int
    waiting_sequences: int
    max_sequences: int
    free_slots: int
    num_slots: int
    kv_usage: float
    """Share of KV blocks in use, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that holds a lease."""

    worker_id: str
    endpoint: str
    base_model: str
    base_model_digest: str
    state: WorkerState
    load: WorkerLoad
    start_time: datetime | None
    lease_expire_time: datetime | None
    epoch: int
    residency_revision: int
    dtype: str
    slot_rank: int


@dataclass(frozen=True, slots=True)
class WorkerCandidate:
    """A worker to call."""

    worker: Worker
    tier: Tier
    """The slowest tier among the adapters asked for."""


@dataclass(frozen=True, slots=True)
class WorkerPick:
    """Workers for a set of adapters, best first."""

    candidates: tuple[WorkerCandidate, ...]
    adapter_digests: tuple[str, ...]
    ttl_s: float
    revision: int


@dataclass(frozen=True, slots=True)
class Placement:
    """A version is on a worker, in a tier: a hint."""

    adapter_digest: str
    worker_id: str
    tier: Tier
    pinned: bool
    adapter: str


@dataclass(frozen=True, slots=True)
class PlacementEvent:
    """A placement began, changed or ended."""

    revision: int
    placement: Placement
    removed: bool
