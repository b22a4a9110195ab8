"""Waiting sequences, and whose turn it is.

Parties share by tokens, and so do the tenants of a party. Within a tenant higher priorities go first, but one that is
passed over ages until it is higher; within a priority mixes of adapters share by tokens; within a mix it is first come,
first served. Sequences that lost their row go before the others of their tenant.
"""

import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hotslot.errors import QueueFullError
from hotslot.ids import PartyId, TenantId
from worker_service.engine.fair_share import PROMPT_TOKEN_COST, FairShare
from worker_service.engine.giving_way import Owner
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.messages import SequenceId
from worker_service.engine.prefix_keys import Mix
from worker_service.engine.sequence import Sequence
from worker_service.engine.tenant_places import TenantPlaces

Flow = OrderedDict[SequenceId, Sequence]
MOST_CLAIMANTS = 4
"""Owners of one party for whom others may have to give way, each time that is looked at."""


@dataclass(frozen=True, slots=True)
class WaitingSequence:
    """A sequence that may get the next row."""

    sequence: Sequence
    fair_rank: int
    """Its place in the order of who was served least."""


@dataclass(slots=True)
class _Priority:
    """Waiting sequences of one tenant and priority, by mix."""

    served_s: float
    """Time at which one of them last got a row, or the first of them came."""
    flows: dict[Mix, Flow] = field(default_factory=dict)


@dataclass(slots=True)
class _Tenant:
    """One tenant's waiting sequences, and what its mixes were served."""

    mixes: FairShare[Mix] = field(default_factory=FairShare)
    preempted: Flow = field(default_factory=OrderedDict)
    """Those that lost their row, the latest first."""
    priorities: dict[int, _Priority] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """True if one of its sequences has no row."""
        return bool(self.preempted or self.priorities)


@dataclass(slots=True)
class _Party:
    """One party's tenants, and what they were served."""

    shares: FairShare[TenantId] = field(default_factory=FairShare)
    tenants: dict[TenantId, _Tenant] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """True if one of its sequences has no row."""
        return any(tenant.waits for tenant in self.tenants.values())


class WaitingQueue:
    """All waiting sequences. Those that run count too where shares are reckoned, from `add` to `leave`."""

    def __init__(self, limits: EngineLimits, policy: EnginePolicy) -> None:
        self._limits = limits
        self._policy = policy
        self._shares: FairShare[PartyId] = FairShare()
        self._parties: dict[PartyId, _Party] = {}
        self._num_preempted = 0
        self.charged = 0.0
        """Tokens that were charged so far."""
        self._places = TenantPlaces(limits.max_waiting)
        """Places of sequences that have not had a row yet."""

    def __len__(self) -> int:
        return len(self._places) + self._num_preempted

    def __iter__(self) -> Iterator[Sequence]:
        for party in self._parties.values():
            for tenant in party.tenants.values():
                yield from tenant.preempted.values()
                for priority in tenant.priorities.values():
                    for flow in priority.flows.values():
                        yield from flow.values()

    def refusal(self, tenant: TenantId, num_idle_rows: int) -> QueueFullError | None:
        """Error for one more sequence of this tenant, which may not wait. Free rows are places, too."""
        num_beyond = max(num_idle_rows - self._num_preempted, 0)
        if self._places.has_room(tenant, num_beyond):
            return None
        who = f"sequences wait for one of {self._limits.max_running} rows"
        return self._places.refusal(tenant, num_beyond, who, "waiting")

    def crowding(self, party: PartyId) -> Sequence | None:
        """Sequence that gives its place to a party that has fewer of them, of the one that has most; its last one.

        It had no row yet, and no choice beside it of which a part may have been told.
        """
        found = self._places.crowding(party)
        if found is None:
            return None
        tenant = self._parties[found[0]].tenants[found[1]]
        for _, priority in sorted(tenant.priorities.items()):
            for flow in reversed(priority.flows.values()):
                for sequence in itertools.islice(reversed(flow.values()), self._policy.look_ahead):
                    if sequence.submit.is_alone:
                        return sequence
        return None

    def num_before(self, sequence: Sequence) -> int:
        """About how many of those who wait get a row before a sequence that comes now."""
        party = self._parties.get(sequence.submit.party)
        tenant = party.tenants.get(sequence.submit.tenant) if party is not None else None
        if party is None or tenant is None:
            return 0
        priority = tenant.priorities.get(sequence.submit.priority)
        flow = priority.flows.get(sequence.mix, ()) if priority is not None else ()
        num_turns = max(1, len(tenant.mixes)) * max(1, len(party.shares)) * max(1, len(self._shares))
        return min(len(self._places), len(flow) * num_turns)

    @property
    def is_shared(self) -> bool:
        """True if sequences of several owners wait or run."""
        return len(self._parties) > 1 or any(len(party.tenants) > 1 for party in self._parties.values())

    def lead(self, first: Owner, second: Owner) -> float:
        """Tokens that one owner was served beyond another; both are active."""
        if first.party != second.party:
            return self._shares.spent(first.party) - self._shares.spent(second.party)
        shares = self._parties[first.party].shares
        return shares.spent(first.tenant) - shares.spent(second.tenant)

    def add(self, sequence: Sequence, now_s: float) -> None:
        """Queue a new sequence."""
        submit = sequence.submit
        party = self._parties.setdefault(submit.party, _Party())
        tenant = party.tenants.setdefault(submit.tenant, _Tenant())
        self._shares.join(submit.party)
        party.shares.join(submit.tenant)
        tenant.mixes.join(sequence.mix)
        priority = tenant.priorities.setdefault(submit.priority, _Priority(now_s))
        priority.flows.setdefault(sequence.mix, OrderedDict())[submit.sequence_id] = sequence
        self._places.take(submit.tenant, submit.party)

    def put_back(self, sequence: Sequence) -> None:
        """A sequence lost its row; it is its tenant's next to get one, before those that lost theirs earlier."""
        preempted = self._tenant(sequence).preempted
        preempted[sequence.submit.sequence_id] = sequence
        preempted.move_to_end(sequence.submit.sequence_id, last=False)
        self._num_preempted += 1

    def take(self, sequence: Sequence, now_s: float) -> None:
        """A sequence gets a row."""
        if not sequence.is_charged:
            self._tenant(sequence).priorities[sequence.submit.priority].served_s = now_s
            sequence.is_charged = True
            self.charge(sequence, PROMPT_TOKEN_COST * sequence.num_uncomputed)
        self._drop(sequence)

    def charge(self, sequence: Sequence, cost: float) -> None:
        """Tokens were computed for a sequence that has not left."""
        self.charged += cost
        party = self._parties[sequence.submit.party]
        self._shares.charge(sequence.submit.party, cost)
        party.shares.charge(sequence.submit.tenant, cost)
        party.tenants[sequence.submit.tenant].mixes.charge(sequence.mix, cost)

    def leave(self, sequence: Sequence) -> None:
        """A sequence has ended, whether it waited or ran."""
        if not sequence.has_row:
            self._drop(sequence)
        submit = sequence.submit
        party = self._parties[submit.party]
        tenant = party.tenants[submit.tenant]
        tenant.mixes.leave(sequence.mix)
        party.shares.leave(submit.tenant)
        self._shares.leave(submit.party)
        if not len(tenant.mixes):
            del party.tenants[submit.tenant]
        if not party.tenants:
            del self._parties[submit.party]

    def claimants(self, order: Iterable[WaitingSequence]) -> Iterator[WaitingSequence]:
        """The first candidate of each owner, the one that was served least first; of a few owners of each party."""
        seen: set[Owner] = set()
        num_seen: Counter[PartyId] = Counter()
        for candidate in sorted(order, key=lambda each: each.fair_rank):
            owner = candidate.sequence.owner
            if owner not in seen and num_seen[owner.party] < MOST_CLAIMANTS:
                seen.add(owner)
                num_seen[owner.party] += 1
                yield candidate

    def candidates(self, now_s: float, is_resident: Callable[[Sequence], bool]) -> list[WaitingSequence]:
        """Sequences that may get the next row, the first of each mix, best choice first.

        Parties take turns, and so do a party's tenants, the one that was served least first. A mix whose adapters are
        in slots goes before others while it is not far ahead of them, so that slots are not filled anew for every row;
        one that was passed over too often goes before all.
        """
        limit = self._policy.look_ahead
        names = [name for name, party in self._parties.items() if party.waits]
        parties = heapq.nsmallest(limit, names, key=self._shares.spent)
        fair = _in_turns([self._heads_of_party(self._parties[name], now_s, limit) for name in parties])
        ranked = [WaitingSequence(sequence, rank) for rank, sequence in enumerate(fair[:limit])]
        if len(ranked) < 2:
            return ranked
        first_of: dict[Owner, Sequence] = {}
        for each in sorted(ranked, key=lambda each: each.sequence.num_preemptions > 0):
            first_of.setdefault(each.sequence.owner, each.sequence)
        first_tenant: dict[PartyId, TenantId] = {}
        for each in ranked:
            first_tenant.setdefault(each.sequence.submit.party, each.sequence.submit.tenant)
        slack, least = self._policy.residency_slack_tokens, ranked[0].sequence.submit.party

        def preference(candidate: WaitingSequence) -> tuple[int, int]:
            sequence = candidate.sequence
            if sequence.num_bypasses >= self._limits.max_bypasses:
                return (0, candidate.fair_rank)
            submit, first = sequence.submit, first_of[sequence.owner]
            shares = self._parties[submit.party].shares
            is_near = (
                self._shares.spent(submit.party) <= self._shares.spent(least) + slack
                and shares.spent(submit.tenant) <= shares.spent(first_tenant[submit.party]) + slack
            )
            is_next = sequence.num_preemptions or (
                submit.priority == first.submit.priority and self._spent(sequence) <= self._spent(first) + slack
            )
            return (1 if is_near and is_next and is_resident(sequence) else 2, candidate.fair_rank)

        return sorted(ranked, key=preference)

    def _heads_of_party(self, party: _Party, now_s: float, limit: int) -> list[Sequence]:
        """The first sequence of each mix of a party's tenants, which take turns."""
        waiting = [name for name, tenant in party.tenants.items() if tenant.waits]
        names = heapq.nsmallest(limit, waiting, key=party.shares.spent)
        return _in_turns([self._heads(party.tenants[name], now_s, limit) for name in names])

    def _heads(self, tenant: _Tenant, now_s: float, limit: int) -> list[Sequence]:
        """A tenant's sequences that lost their row, and the first one of each of its mixes, in fair order."""
        heads = list(itertools.islice(tenant.preempted.values(), limit))
        ageing_s = self._policy.ageing_s

        def aged(item: tuple[int, _Priority]) -> float:
            return item[0] + (now_s - item[1].served_s) / ageing_s

        for _, priority in sorted(tenant.priorities.items(), key=aged, reverse=True):
            firsts = [next(iter(flow.values())) for flow in priority.flows.values()]
            heads += heapq.nsmallest(limit, firsts, key=lambda s: (tenant.mixes.spent(s.mix), s.submit.sequence_id))
            if len(heads) >= limit:
                break
        return heads

    def _spent(self, sequence: Sequence) -> float:
        return self._tenant(sequence).mixes.spent(sequence.mix)

    def _tenant(self, sequence: Sequence) -> _Tenant:
        return self._parties[sequence.submit.party].tenants[sequence.submit.tenant]

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out of what waits."""
        submit = sequence.submit
        tenant = self._tenant(sequence)
        if tenant.preempted.pop(submit.sequence_id, None) is not None:
            self._num_preempted -= 1
            return
        priority = tenant.priorities[submit.priority]
        flow = priority.flows[sequence.mix]
        del flow[submit.sequence_id]
        if not flow:
            del priority.flows[sequence.mix]
            if not priority.flows:
                del tenant.priorities[submit.priority]
        self._places.give_back(submit.tenant, submit.party)


def _in_turns(turns: Iterable[list[Sequence]]) -> list[Sequence]:
    """The first of each list, then the second of each, and so on."""
    return [head for heads in itertools.zip_longest(*turns) for head in heads if head is not None]
