"""What is known about workers and placements, and how it is written in Redis: the encodings are here only."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, get_args, get_type_hints

from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, WorkerId, is_digest


class Tier(StrEnum):
    """Where an adapter is on a worker, fastest first."""

    SLOT = "slot"
    HOST = "host"
    DISK = "disk"
    NONE = "none"

    @property
    def distance(self) -> int:
        """0 for the fastest tier."""
        return _DISTANCES[self]


_DISTANCES = {tier: position for position, tier in enumerate(Tier)}


class WorkerState(StrEnum):
    """Whether a worker takes requests."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """Also while its engine hangs: readers of other versions know no further state."""


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How busy a worker is."""

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

    @property
    def in_flight(self) -> int:
        """Sequences that the worker has accepted and not finished."""
        return self.running_sequences + self.waiting_sequences


Abilities = tuple[Digest, str, int, int, int, int]
"""Base model, element type, and the sizes within which a worker serves."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What stays the same from a worker's start to its end."""

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
        """Whether either may answer for the other: what one accepts the other accepts, and computes alike."""
        return self.abilities == other.abilities

    @property
    def abilities(self) -> Abilities:
        """What workers that serve alike have in common."""
        sizes = self.slot_rank, self.num_slots, self.max_rank, self.max_sequence_tokens
        return self.base_model_digest, self.dtype, *sizes


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker that holds a lease."""

    info: WorkerInfo
    state: WorkerState
    load: WorkerLoad
    lease_expire_time_s: float
    """On Redis's clock, seconds since the Unix epoch."""
    residency_revision: int
    """Of the newest residency report; 0 before the first."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A version that a worker holds."""

    digest: Digest
    tier: Tier
    pinned: bool = False
    name: str = ""
    """The reference's name by which it was last served, for people."""
    tenant: TenantId = DEFAULT_TENANT
    """Whose name that is; others are shown their own."""
    demand: float = 0.0
    """Sequences of this version in flight here, by the rows that can run at once: its steps are coarse and slow
    (`shared.fleet.demand`), so that it seldom changes."""
    others: tuple[tuple[TenantId, str], ...] = ()
    """Further tenants that use the same content here, each with its own name for it."""

    def seen_by(self, tenant: TenantId) -> "Resident | None":
        """As a tenant is shown it, under its own name and nobody else's; None when it did not use it here."""
        for user, name in ((self.tenant, self.name), *self.others):
            if user == tenant:
                return replace(self, tenant=user, name=name, others=())
        return None


@dataclass(frozen=True, slots=True)
class Placement:
    """A version on a worker. A hint: the worker's own word is the truth."""

    worker_id: WorkerId
    resident: Resident


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
    """Who holds some versions at one moment."""

    placements: Mapping[Digest, tuple[Placement, ...]]
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


_KINDS: dict[type[Any], dict[str, Any]] = {
    WorkerInfo: {each.name: get_type_hints(WorkerInfo)[each.name] for each in fields(WorkerInfo)},
    WorkerLoad: {each.name: get_type_hints(WorkerLoad)[each.name] for each in fields(WorkerLoad)},
}
MAX_COUNT = 2**31 - 1
MAX_EPOCH = 2**63 - 1
MAX_TIME_S = 2**37
"""In the year 6325; a message holds no later time than that of the year 9999."""


def encode_info(info: WorkerInfo) -> str:
    """As the field `info` of a worker's key."""
    return json.dumps(asdict(info), separators=(",", ":"))


def encode_load(load: WorkerLoad) -> str:
    """As the field `load` of a worker's key."""
    return json.dumps(asdict(load), separators=(",", ":"))


def decode_worker(fields: Mapping[str, str]) -> WorkerRecord:
    """From the fields of a worker's key. Raises ValueError, TypeError or KeyError for what is none."""
    return WorkerRecord(
        info=WorkerInfo(**_known(WorkerInfo, fields["info"])),
        state=WorkerState(fields["state"]),
        load=WorkerLoad(**_known(WorkerLoad, fields["load"])),
        lease_expire_time_s=_number(int, int(fields["lease_until_ms"]), most=MAX_TIME_S * 1000) / 1e3,
        # It only tells whether there was a report.
        residency_revision=int(fields["residency_revision"]) if _is_whole(fields.get("residency_revision")) else 0,
    )


def encode_resident(resident: Resident) -> str:
    """As a value of a residency or placements hash; the digest or worker is the field's name."""
    names = resident.tenant, resident.name
    document = [resident.tier.value, int(resident.pinned), *names, resident.demand, resident.others]
    return json.dumps(document, separators=(",", ":"))


def decode_resident(digest: str, value: str) -> Resident:
    """From a value of a residency or placements hash. Later versions may append elements, as `demand` and `others`
    once were. Raises ValueError or TypeError for what is none."""
    if not is_digest(digest):
        raise ValueError("not a digest")
    tier, pinned, tenant, name, *rest = json.loads(value)
    demand = float(_number(float, rest[0], most=math.inf)) if rest else 0.0
    users = rest[1] if len(rest) > 1 else ()
    others = tuple((TenantId(_text(user)), _text(its_name)) for user, its_name in users)
    return Resident(Digest(digest), Tier(tier), bool(pinned), _text(name), TenantId(_text(tenant)), demand, others)


def decode_changes(revision: int, worker_id: str, value: str) -> list[PlacementChange]:
    """From an entry of the stream of changes: triples of digest, value before and value after; empty for none.

    Raises ValueError or TypeError for what is none; what was before may be unreadable, since it was replaced.
    """
    return [
        PlacementChange(
            revision,
            WorkerId(worker_id),
            Digest(digest),
            _resident_or_none(digest, before),
            decode_resident(digest, after) if after else None,
        )
        for digest, before, after in json.loads(value)
        if is_digest(digest)
    ]


def _resident_or_none(digest: str, value: str) -> Resident | None:
    try:
        return decode_resident(digest, value) if value else None
    except (ValueError, TypeError):
        return None


def _known(cls: type[Any], text: str) -> dict[str, Any]:
    """The fields that this version knows: old and new workers share a fleet during a rolling update."""
    document = json.loads(text)
    if not isinstance(document, dict):
        raise TypeError(f"found {type(document).__name__}, expected an object")
    return {name: _checked(name, kind, document[name]) for name, kind in _KINDS[cls].items() if name in document}


def _checked(name: str, kind: Any, value: Any) -> Any:
    """A field's value, of its type and within what messages hold."""
    if type(None) in get_args(kind):
        if value is None:
            return None
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    if kind in (int, float):
        most = MAX_EPOCH if name == "epoch" else MAX_COUNT if kind is int else MAX_TIME_S
        return _number(kind, value, least=1 if name == "max_sequences" else 0, most=most)
    return _text(value)


def _number(kind: type[int] | type[float], value: Any, *, least: int = 0, most: float) -> Any:
    is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or not math.isfinite(value):
        raise ValueError(f"found {value!r}, expected a number from {least} to {most:g}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {type(value).__name__}, expected a text")
    value.encode()  # A lone surrogate fits into no message.
    return value


def _is_whole(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) <= 18
