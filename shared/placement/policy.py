"""Choosing workers for a request: by where its adapters are, by load, with a bounded spill.

Every version has `replicas` homes, the first workers in its rendezvous order. A home that is overloaded is passed
over for the next in the order. Among the homes and whoever else holds the version already, the one with the fastest
tier wins, then a home, then the one with the least load. So an adapter stays where it is while that worker can take
it, spreads when it cannot, and a cold one starts at a home that every machine agrees on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shared.coordination.records import Placement, Tier, WorkerRecord, WorkerState
from shared.ids import Digest, WorkerId
from shared.placement.rendezvous import Rendezvous


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """The constants of the policy."""

    replicas: int = 2
    """Homes of a version."""
    max_load_ratio: float = 1.25
    """Of the fleet's mean load; a worker above it is overloaded. As in consistent hashing with bounded loads
    (Mirrokni, Thorup and Zadimoghaddam, 2018), c = 1.25."""
    spill_above: float = 0.5
    """Share of its rows below which a worker is never overloaded: in an idle fleet one request is far above the mean,
    and a cold load costs more than a shared step."""


DEFAULT_POLICY = PolicyOptions()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker to call, with the slowest tier among the adapters asked for."""

    worker: WorkerRecord
    tier: Tier


class Fleet:
    """The workers of one pool that take requests, prepared for many decisions; immutable."""

    def __init__(
        self,
        workers: Iterable[WorkerRecord],
        now_s: float,
        *,
        options: PolicyOptions = DEFAULT_POLICY,
        rendezvous: Rendezvous | None = None,
    ) -> None:
        """`now_s` is on the clock of the leases. `rendezvous` of an earlier fleet is kept if its workers are these."""
        self.workers: Mapping[WorkerId, WorkerRecord] = {
            record.info.worker_id: record
            for record in workers
            if record.state is WorkerState.READY and record.lease_expire_time_s > now_s
        }
        ids = tuple(sorted(self.workers))
        self.rendezvous = rendezvous if rendezvous and rendezvous.worker_ids == ids else Rendezvous(ids)
        self._options = options
        self._loads = {worker_id: relative_load(record) for worker_id, record in self.workers.items()}
        mean = sum(self._loads.values()) / len(self._loads) if self._loads else 0.0
        limit = max(mean * options.max_load_ratio, options.spill_above)
        self.overloaded = frozenset(worker_id for worker_id, load in self._loads.items() if load > limit)
        self._by_load = tuple(sorted(ids, key=lambda worker_id: (self._loads[worker_id], worker_id)))

    def pick(
        self,
        digests: Sequence[Digest],
        placements: Mapping[Digest, Sequence[Placement]],
        *,
        count: int,
        turn: int = 0,
    ) -> list[Candidate]:
        """The best `count` workers, best first; empty only when the fleet is.

        `placements` are the holders of these digests. `turn` breaks ties among idle workers: pass a different number
        each time.
        """
        if not digests:
            return [Candidate(self.workers[worker_id], Tier.NONE) for worker_id in self._least_loaded(count, turn)]
        held = self._tiers(digests, placements)
        homes = self._homes(digests[0])
        order = [*homes, *(worker_id for worker_id in held if worker_id not in homes)]
        rank = {worker_id: position for position, worker_id in enumerate(homes)}
        ranked = sorted(
            order,
            key=lambda worker_id: (
                worker_id in self.overloaded,
                self._slowest(digests, held.get(worker_id)).distance,
                worker_id not in rank,
                self._loads[worker_id],
                rank.get(worker_id, 0),
                worker_id,
            ),
        )[:count]
        if len(ranked) < count:
            chosen = set(ranked)
            ranked += [w for w in self._by_load[: count + len(chosen)] if w not in chosen][: count - len(ranked)]
        return [Candidate(self.workers[w], self._slowest(digests, held.get(w))) for w in ranked]

    def _homes(self, key: Digest) -> list[WorkerId]:
        """The first workers of the order that are not overloaded; the plain order when all are."""
        wanted, looked_at = self._options.replicas, self._options.replicas
        while True:
            order = self.rendezvous.top(key, looked_at)
            homes = [worker_id for worker_id in order if worker_id not in self.overloaded][:wanted]
            if len(homes) == wanted:
                return homes
            if len(order) < looked_at:
                return homes or list(order[:wanted])
            looked_at *= 2

    def _tiers(
        self, digests: Sequence[Digest], placements: Mapping[Digest, Sequence[Placement]]
    ) -> dict[WorkerId, dict[Digest, Tier]]:
        held: dict[WorkerId, dict[Digest, Tier]] = {}
        for digest in digests:
            for placement in placements.get(digest, ()):
                if placement.worker_id in self.workers:
                    held.setdefault(placement.worker_id, {})[digest] = placement.resident.tier
        return held

    def _slowest(self, digests: Sequence[Digest], tiers: Mapping[Digest, Tier] | None) -> Tier:
        if tiers is None:
            return Tier.NONE
        return max((tiers.get(digest, Tier.NONE) for digest in digests), key=lambda tier: tier.distance)

    def _least_loaded(self, count: int, turn: int) -> list[WorkerId]:
        """By load; equally loaded workers take turns at being first."""
        if not self._by_load:
            return []
        least = self._loads[self._by_load[0]]
        idle = [worker_id for worker_id in self._by_load if self._loads[worker_id] == least]
        start = turn % len(idle)
        return [*idle[start:], *idle[:start], *self._by_load[len(idle) :]][:count]


def relative_load(record: WorkerRecord) -> float:
    """Sequences accepted and not finished, by the rows that can run at once."""
    return record.load.in_flight / max(1, record.load.max_sequences)
