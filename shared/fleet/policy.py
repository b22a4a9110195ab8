"""Choosing workers for a request: by where its adapters are, by demand, by load, with a bounded spill.

A version's homes are the first k workers in its rendezvous order; k follows its demand (`demand.py`). Requests go

1. to the homes that have it and have room, shared out by how much; a home that does not have it yet gets a small part,
   which is how it comes to have it;
2. else to another worker that has it: what a join or a past spill left elsewhere stays there while it is used, so that
   nothing moves without need;
3. else, cold, to the first in the order that is well below its bound, else to the first that does not spill it;
4. else, when every worker spills it, to the least loaded that has it.

A worker that is overloaded spills by degrees: the further it is above the bound, the more of its versions go on to the
next worker, and always the same ones first, whichever router decides. So the excess goes, rather than everything at
once and back again, and a cold load is paid for once. A version that others have as well is let go at once.

A version weighs what it occupies: the slots that it takes, by the mean of the pool's versions. A heavy one gets another
home at a larger demand, and is spilled later, since each copy takes the place of several light ones.

"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, WorkerId
from shared.fleet.demand import homes_for, homes_range
from shared.fleet.policy_options import DEFAULT_POLICY, PolicyOptions
from shared.fleet.records import MEMORY_TIERS, PlacedVersion, WorkerRecord, distance_of
from shared.fleet.rendezvous import Rendezvous
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy

_WINDOW = 8
"""Homes that are compared for one decision, so that it takes as long for a version with hundreds of them."""
_LEAST_ROOM = 0.02
_LEAST_EVEN = 0.05
"""Least bound of a worker's load, when requests are shared out: for fleets that do nothing."""
_MOMENT_WEIGHT = 0.3
"""Weight of the load of the moment beside the usual load, when requests are shared out."""
_RELUCTANCE_DIGITS = 8
"""Hexadecimal digits of a digest that say how late its version is spilled."""
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class RankedWorker:
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
        told = [record.load.slots_each for record in self.workers.values() if record.load.slots_each]
        self._slots_each = sum(told) / len(told) if told else 0.0
        self._judge({worker_id: relative_load(record) for worker_id, record in self.workers.items()})

    def knowing(self, sent: Mapping[WorkerId, float]) -> "Fleet":
        """The same fleet with requests in it that the workers' reports do not count yet."""
        rows = {worker_id: max(1, self.workers[worker_id].load.max_sequences) for worker_id in sent}
        fleet = copy(self)
        fleet._judge({**self._loads, **{w: self._loads[w] + count / rows[w] for w, count in sent.items()}})
        return fleet

    def _judge(self, loads: Mapping[WorkerId, float]) -> None:
        """Judge the workers by their loads of the moment: spilled shares, room, nearness to the bound."""
        self._loads, options = loads, self._options
        usual = {worker_id: usual_load(record) for worker_id, record in self.workers.items()}
        even_now, even = (max(options.max_load_ratio * _mean(each), _LEAST_EVEN) for each in (loads, usual))
        bound_now, bound = max(even_now, options.full_above), max(even, options.spill_above)
        excess = {w: max(load / bound_now, usual[w] / bound) - 1 for w, load in loads.items()}
        self._spilled = {w: above / options.spill_range for w, above in excess.items() if above > 0}
        """Share of its versions that an overloaded worker spills; above 1 all of them."""
        self._near_bound = {w for w, above in excess.items() if above > options.cold_below - 1}
        # By the fleet's mean, however quiet it is: to share out what several have evens out the load for nothing.
        now, usually = _MOMENT_WEIGHT / even_now, (1 - _MOMENT_WEIGHT) / even
        self._room = {w: max(_LEAST_ROOM, 1 - now * load - usually * usual[w]) for w, load in loads.items()}
        self._by_load = tuple(sorted(self.rendezvous.worker_ids, key=lambda w: (loads[w], w)))

    def pick(
        self,
        digests: Sequence[Digest],
        placements: Mapping[Digest, Sequence[PlacedVersion]],
        *,
        count: int,
        turn: int = 0,
        policy: ReplicaPolicy = DEFAULT_REPLICA_POLICY,
    ) -> list[RankedWorker]:
        """The best `count` workers, best first; fewer when the fleet or the policy has no more.

        `placements` are the holders of these digests. The first digest decides about homes, and `policy` is its
        adapter's. Pass a different `turn` each time: it shares requests out among equally good workers.
        """
        if not digests:
            return [RankedWorker(self.workers[worker_id], Tier.NONE) for worker_id in self._least_loaded(count, turn)]
        held, demand, weight = self._holdings(placements.get(digests[0], ()))
        homes = self._homes(digests[0], held, demand, weight, policy)
        tiers = self._slowest(held, digests[1:], placements) if len(digests) > 1 else held
        steps = chain.from_iterable(
            self._steps(digests[0], homes, tiers, _reluctance(digests[0], weight), policy, turn)
        )
        ranked: dict[WorkerId, RankedWorker] = {}
        for worker_id in steps:
            if worker_id not in ranked:
                ranked[worker_id] = RankedWorker(self.workers[worker_id], tiers.get(worker_id, Tier.NONE))
                if len(ranked) >= count:
                    break
        return list(ranked.values())

    def homes(
        self, key: Digest, holders: Sequence[PlacedVersion], policy: ReplicaPolicy = DEFAULT_REPLICA_POLICY
    ) -> Sequence[WorkerId]:
        """Homes of a version, first the first in its order: as many as its demand and its policy want."""
        return self._homes(key, *self._holdings(holders), policy)

    def should_hold(self, worker_id: WorkerId, key: Digest, policy: ReplicaPolicy) -> bool:
        """Tell whether a worker should have a version even if no request asks for it: the first homes of a pinned
        adapter.
        """
        most = min(max(1, policy.min_replicas), self._most(policy))
        return policy.pinned and worker_id in self.rendezvous.top(key, most)

    def spills(self, worker_id: WorkerId, key: Digest, num_slots: int = 0) -> bool:
        """Tell whether a worker is so much overloaded that this version should go elsewhere."""
        return self._spilled.get(worker_id, 0.0) > _reluctance(key, self._weight(num_slots))

    def _steps(
        self,
        key: Digest,
        homes: Sequence[WorkerId],
        tiers: Mapping[WorkerId, Tier],
        reluctance: float,
        policy: ReplicaPolicy,
        turn: int,
    ) -> Iterator[Iterable[WorkerId]]:
        """The steps of the module's docstring, each with its workers best first; later ones may repeat earlier ones."""
        loads, spilled = self._loads, self._spilled
        if len(homes) > _WINDOW:
            first = _mixed(turn) % len(homes)
            homes = (*homes[first : first + _WINDOW], *homes[: max(0, first + _WINDOW - len(homes))])
        roomy = [worker_id for worker_id in homes if worker_id not in spilled]
        if any(tiers.get(worker_id) in MEMORY_TIERS for worker_id in roomy):
            yield self._shared_out(roomy, tiers, turn) if len(roomy) > 1 else roomy
        yield [w for w in homes if spilled.get(w, 0.0) <= reluctance and tiers.get(w) in MEMORY_TIERS]
        order = self.rendezvous.top(key, self._most(policy) if policy.max_replicas else _WINDOW)
        rank = {worker_id: position for position, worker_id in enumerate(order)}
        elsewhere = sorted(
            (w for w in tiers if spilled.get(w, 0.0) <= reluctance and (w in rank or not policy.max_replicas)),
            key=lambda w: (distance_of(tiers[w]), loads[w], rank.get(w, len(rank)), w),
        )
        yield elsewhere
        yield [w for w in order if w not in self._near_bound]
        yield self._walk(key, policy, reluctance)
        last = rank if policy.max_replicas else self._by_load
        yield sorted((w for w in tiers if w in last), key=loads.__getitem__)
        yield sorted(last, key=loads.__getitem__)

    def _shared_out(self, homes: Iterable[WorkerId], tiers: Mapping[WorkerId, Tier], turn: int) -> list[WorkerId]:
        """In a random order that is weighted with the room of each (Efraimidis and Spirakis, 2006).

        Loads are seconds old and the same for all routers: the least loaded would get everything until the next report.
        """
        drawn = []
        for number, worker_id in enumerate(homes):
            share = self._room[worker_id] * (1.0 if tiers.get(worker_id) in MEMORY_TIERS else self._options.cold_share)
            drawn.append((math.log((_mixed(turn + (number << 40)) + 1) / 2**64) / share, worker_id))
        drawn.sort(reverse=True)
        return [worker_id for _, worker_id in drawn]

    def _walk(self, key: Digest, policy: ReplicaPolicy, reluctance: float) -> Iterator[WorkerId]:
        """The version's order without who spills it, looked up as far as it is asked for."""
        most, looked_at = self._most(policy), 0
        while looked_at < most:
            order = self.rendezvous.top(key, min(most, max(_WINDOW, 2 * looked_at)))
            yield from (w for w in order[looked_at:] if self._spilled.get(w, 0.0) <= reluctance)
            looked_at = len(order)

    def _most(self, policy: ReplicaPolicy) -> int:
        """The most workers that a version may be on."""
        return min(policy.max_replicas or len(self.workers), len(self.workers))

    def _holdings(self, holders: Iterable[PlacedVersion]) -> tuple[dict[WorkerId, Tier], float, float]:
        """Tiers of a version by worker, its demand and its weight: one pass, since there may be hundreds of holders."""
        workers, held, demand, resident = self.workers, {}, 0.0, None
        for placement in holders:
            worker_id = placement.worker_id
            if worker_id in workers:
                resident = placement.resident
                held[worker_id] = resident.tier
                demand += resident.demand
        return held, demand, self._weight(resident.num_slots) if resident is not None else 1.0

    def _weight(self, num_slots: int) -> float:
        """Weight of a version that takes so many slots; 1 where they are not known."""
        if not num_slots or not self._slots_each:
            return 1.0
        weight: float = (num_slots / self._slots_each) ** self._options.slots_exponent
        return min(max(weight, 1 / self._options.most_weight), self._options.most_weight)

    def _homes(
        self, key: Digest, held: Mapping[WorkerId, Tier], demand: float, weight: float, policy: ReplicaPolicy
    ) -> Sequence[WorkerId]:
        most, demand = self._most(policy), demand / weight
        low, high = homes_range(demand, self._options.demand)
        if low == high or high <= policy.min_replicas:
            return self.rendezvous.top(key, min(max(low, policy.min_replicas), most))
        order = self.rendezvous.top(key, min(high, most))
        current = sum(map(held.__contains__, order))
        wanted = homes_for(demand, current, self._options.demand)
        return order[: max(wanted, policy.min_replicas)]

    def _slowest(
        self,
        held: Mapping[WorkerId, Tier],
        others: Sequence[Digest],
        placements: Mapping[Digest, Sequence[PlacedVersion]],
    ) -> dict[WorkerId, Tier]:
        """On each worker that has any of the adapters, the slowest tier among them."""
        tiers = dict(held)
        for digest in others:
            other_held, _, _ = self._holdings(placements.get(digest, ()))
            for worker_id in {*tiers, *other_held}:
                one, other = tiers.get(worker_id, Tier.NONE), other_held.get(worker_id, Tier.NONE)
                tiers[worker_id] = max(one, other, key=distance_of)
        return tiers

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


def usual_load(record: WorkerRecord) -> float:
    """The same over the last half minute or so, from workers that report it."""
    if record.load.mean_in_flight is None:
        return relative_load(record)
    return record.load.mean_in_flight / max(1, record.load.max_sequences)


def _reluctance(key: Digest, weight: float) -> float:
    """Reluctance to spill a version, 0 to 1: the same on every router, and larger for one that weighs more."""
    chance = int(key[-_RELUCTANCE_DIGITS:], 16) / 16**_RELUCTANCE_DIGITS
    return float(chance if weight == 1.0 else chance ** (1 / weight))


def _mean(loads: Mapping[WorkerId, float]) -> float:
    return sum(loads.values()) / len(loads) if loads else 0.0


def _mixed(number: int) -> int:
    """A number's bits mixed: uniform over 64 bits, for numbers that follow each other (splitmix64)."""
    number = (number + 1) * 0x9E3779B97F4A7C15 & _MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31
