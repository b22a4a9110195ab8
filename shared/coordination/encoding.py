"""Encodings of the fleet's records in Redis, both directions: here and nowhere else."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_type_hints

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, TenantId, WorkerId, is_digest
from shared.fleet.records import PlacementChange, ReportedLoad, Resident, WorkerInfo, WorkerRecord

E = TypeVar("E", bound=StrEnum)

_KINDS: dict[type[Any], dict[str, Any]] = {
    WorkerInfo: {each.name: get_type_hints(WorkerInfo)[each.name] for each in fields(WorkerInfo)},
    ReportedLoad: {each.name: get_type_hints(ReportedLoad)[each.name] for each in fields(ReportedLoad)},
}
MAX_COUNT = 2**31 - 1
MAX_EPOCH = 2**63 - 1
MAX_TIME_S = 2**37
"""In the year 6325; a message holds no later time than that of the year 9999."""


def encode_info(info: WorkerInfo) -> str:
    """As the field `info` of a worker's key."""
    return json.dumps(asdict(info), separators=(",", ":"))


def encode_load(load: ReportedLoad) -> str:
    """As the field `load` of a worker's key; what came later is left out where it says nothing."""
    document = asdict(load)
    if not load.slots_each:
        del document["slots_each"]
    return json.dumps(document, separators=(",", ":"))


def decode_info(text: str) -> WorkerInfo:
    """From the field `info` of a worker's key. Raises ValueError, TypeError or KeyError for what is none."""
    return WorkerInfo(**_known(WorkerInfo, text))


def decode_worker(fields: Mapping[str, str]) -> WorkerRecord:
    """From the fields of a worker's key. Raises ValueError, TypeError or KeyError for what is none."""
    return WorkerRecord(
        info=decode_info(fields["info"]),
        state=_specified(WorkerState(fields["state"])),
        load=ReportedLoad(**_known(ReportedLoad, fields["load"])),
        lease_expire_time_s=_number(int, int(fields["lease_until_ms"]), most=MAX_TIME_S * 1000) / 1e3,
        # It only tells whether there was a report.
        residency_revision=int(fields["residency_revision"]) if _is_whole(fields.get("residency_revision")) else 0,
    )


def encode_resident(resident: Resident) -> str:
    """As a value of a residency or placements hash; the digest or worker is the field's name."""
    names = resident.tenant, resident.name
    known = [resident.tier.value, int(resident.pinned), *names, resident.demand, resident.others]
    document = [*known, resident.num_slots] if resident.num_slots else known
    return json.dumps(document, separators=(",", ":"))


def decode_resident(digest: str, value: str) -> Resident:
    """From a value of a residency or placements hash. Later versions may append elements, as `demand`, `others` and
    `num_slots` once were. Raises ValueError or TypeError for what is none."""
    if not is_digest(digest):
        raise ValueError("not a digest")
    tier, pinned, tenant, name, *rest = json.loads(value)
    demand = float(_number(float, rest[0], most=math.inf)) if rest else 0.0
    users = rest[1] if len(rest) > 1 else ()
    # A record of an earlier release may have its seal there, which is a text.
    is_told = len(rest) > 2 and not isinstance(rest[2], str)
    num_slots = _number(int, rest[2], most=MAX_COUNT) if is_told else 0
    others = tuple((TenantId(_text(user)), _text(its_name)) for user, its_name in users)
    return Resident(
        Digest(digest),
        _specified(Tier(tier)),
        bool(pinned),
        _text(name),
        TenantId(_text(tenant)),
        demand,
        others,
        num_slots,
    )


def _is_taken(digest: str, value: str) -> bool:
    """Take every resident."""
    return True


def decode_changes(
    revision: int, worker_id: str, value: str, is_taken: Callable[[str, str], bool] = _is_taken
) -> list[PlacementChange]:
    """From an entry of the stream of changes: triples of digest, value before and value after; empty for none.

    `is_taken` tells of a digest and a value whether to go by it. Raises ValueError or TypeError for what is none; what
    was before may be unreadable, since it was replaced.
    """
    return [
        PlacementChange(
            revision,
            WorkerId(worker_id),
            Digest(digest),
            _resident_or_none(digest, before) if before and is_taken(digest, before) else None,
            decode_resident(digest, after) if after else None,
        )
        for digest, before, after in json.loads(value)
        if is_digest(digest) and (not after or is_taken(digest, after))
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


def _specified(member: E) -> E:
    """A member that this release knows; UNSPECIFIED is for messages of others."""
    if member.value == "unspecified":
        raise ValueError("unspecified")
    return member


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
