"""Workers of one pool that are not alike: a pick stays among those that may answer for each other. Pure.

A version belongs to one of the groups that can serve it, in proportion to their rows: weighted rendezvous hashing
(Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005), so that a group that grows takes its share and
nothing else moves.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hotslot.formats.manifest import Manifest
from hotslot.ids import Digest
from shared.fleet.policy import Fleet
from shared.fleet.policy_options import PolicyOptions
from shared.fleet.records import Abilities, WorkerInfo, WorkerRecord


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks of a version; those that are not known are 0."""

    largest: int = 0
    """Largest rank of any module, which a worker's `max_rank` bounds."""
    in_slots: int = 0
    """The most that a module takes in slots, where a bias is one more."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Ranks":
        """Those of a version."""
        return cls(manifest.max_rank, manifest.ranks_in_slots)


UNKNOWN_RANKS = Ranks()


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The workers of a pool that accept the same requests and answer them alike."""

    like: WorkerInfo
    """Any of them."""
    fleet: Fleet
    num_rows: int
    """Rows of the workers that take requests."""

    def fits(self, wanted: Mapping[Digest, Ranks]) -> bool:
        """Tell whether its workers can serve these versions together; what is not known (0) is no obstacle."""
        like = self.like
        if like.max_rank and max((ranks.largest for ranks in wanted.values()), default=0) > like.max_rank:
            return False
        if not like.num_slots:
            return True
        return sum(max(1, math.ceil(ranks.in_slots / like.slot_rank)) for ranks in wanted.values()) <= like.num_slots


def group_workers(
    workers: Iterable[WorkerRecord], time_s: float, options: PolicyOptions, before: Mapping[Abilities, WorkerGroup]
) -> dict[Abilities, WorkerGroup]:
    """The groups in which a worker takes requests. Orders of `before` are kept where the workers are the same."""
    alike: dict[Abilities, list[WorkerRecord]] = {}
    for record in workers:
        alike.setdefault(record.info.abilities, []).append(record)
    groups = {}
    for abilities, records in alike.items():
        known = before.get(abilities)
        fleet = Fleet(records, time_s, options=options, rendezvous=known.fleet.rendezvous if known else None)
        if fleet.workers:
            num_rows = sum(max(1, record.load.max_sequences) for record in fleet.workers.values())
            groups[abilities] = WorkerGroup(records[0].info, fleet, num_rows)
    return groups


def choose(groups: Mapping[Abilities, WorkerGroup], key: str, wanted: Mapping[Digest, Ranks]) -> Fleet | None:
    """The group for one request; None when no worker takes requests.

    `key` is the first adapter's digest, or anything that differs from request to request. When no group can serve the
    `wanted` versions together, one of them is left to say why.
    """
    able = [group for group in groups.values() if group.fits(wanted)] or list(groups.values())
    if len(able) < 2:
        return able[0].fleet if able else None
    return max(able, key=lambda group: _score(group, key)).fleet


def _score(group: WorkerGroup, key: str) -> float:
    text = "|".join(map(str, (key, *group.like.abilities)))
    drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return -group.num_rows / math.log((drawn + 0.5) / 2**64)
