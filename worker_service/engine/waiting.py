"""Waiting sequences, and whose turn it is.

Tenants share by tokens. Within a tenant higher priorities go first, but one that is passed over ages until it is
higher; within a priority mixes of adapters share by tokens; within a mix it is first come, first served.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hotslot.errors import QueueFullError
from hotslot.ids import TenantId
from worker_service.engine.fair_share import PROMPT_TOKEN_COST, FairShare
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.messages import SequenceId
from worker_service.engine.prefix_keys import Mix
from worker_service.engine.sequence import Sequence
from worker_service.engine.tenant_places import TenantPlaces

Flow = OrderedDict[SequenceId, Sequence]


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
    priorities: dict[int, _Priority] = field(default_factory=dict)


class WaitingQueue:
    """All waiting sequences. Those that run count too where shares are reckoned, from `add` to `leave`."""

    def __init__(self, limits: EngineLimits, policy: EnginePolicy) -> None:
        self._limits = limits
        self._policy = policy
        self._shares: FairShare[TenantId] = FairShare()
        self._tenants: dict[TenantId, _Tenant] = {}
        self._preempted: Flow = OrderedDict()
        self._places = TenantPlaces(limits.max_waiting)
        """Places of sequences that have not had a row yet."""

    def __len__(self) -> int:
        return len(self._places) + len(self._preempted)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted.values()
        for tenant in self._tenants.values():
            for priority in tenant.priorities.values():
                for flow in priority.flows.values():
                    yield from flow.values()

    def refusal(self, tenant: TenantId, num_idle_rows: int) -> QueueFullError | None:
        """Error for one more sequence of this tenant, which may not wait. Free rows are places, too."""
        num_beyond = max(num_idle_rows - len(self._preempted), 0)
        if self._places.has_room(tenant, num_beyond):
            return None
        who = f"sequences wait for one of {self._limits.max_running} rows"
        return self._places.refusal(tenant, num_beyond, who, "waiting")

    def num_before(self, sequence: Sequence) -> int:
        """About how many of those who wait get a row before a sequence that comes now."""
        tenant = self._tenants.get(sequence.submit.tenant)
        if tenant is None:
            return 0
        priority = tenant.priorities.get(sequence.submit.priority)
        flow = priority.flows.get(sequence.mix, ()) if priority is not None else ()
        return min(len(self._places), len(flow) * max(1, len(tenant.mixes)) * max(1, len(self._shares)))

    def add(self, sequence: Sequence, now_s: float) -> None:
        """Queue a new sequence."""
        submit = sequence.submit
        tenant = self._tenants.setdefault(submit.tenant, _Tenant())
        self._shares.join(submit.tenant)
        tenant.mixes.join(sequence.mix)
        priority = tenant.priorities.setdefault(submit.priority, _Priority(now_s))
        priority.flows.setdefault(sequence.mix, OrderedDict())[submit.sequence_id] = sequence
        self._places.take(submit.tenant)

    def put_back(self, sequence: Sequence) -> None:
        """A sequence lost its row; it is the next to get one, before those that lost theirs earlier."""
        self._preempted[sequence.submit.sequence_id] = sequence
        self._preempted.move_to_end(sequence.submit.sequence_id, last=False)

    def take(self, sequence: Sequence, now_s: float) -> None:
        """A sequence gets a row."""
        if not sequence.is_charged:
            self._tenants[sequence.submit.tenant].priorities[sequence.submit.priority].served_s = now_s
            sequence.is_charged = True
            self.charge(sequence, PROMPT_TOKEN_COST * sequence.num_uncomputed)
        self._drop(sequence)

    def charge(self, sequence: Sequence, cost: float) -> None:
        """Tokens were computed for a sequence that has not left."""
        self._shares.charge(sequence.submit.tenant, cost)
        self._tenants[sequence.submit.tenant].mixes.charge(sequence.mix, cost)

    def leave(self, sequence: Sequence) -> None:
        """A sequence has ended, whether it waited or ran."""
        if not sequence.has_row:
            self._drop(sequence)
        name = sequence.submit.tenant
        tenant = self._tenants[name]
        tenant.mixes.leave(sequence.mix)
        self._shares.leave(name)
        if not len(tenant.mixes):
            del self._tenants[name]

    def candidates(self, now_s: float, is_resident: Callable[[Sequence], bool]) -> list[WaitingSequence]:
        """Sequences that may get the next row, the first of each mix, best choice first.

        Tenants take turns, the one that was served least first. A mix whose adapters are in slots goes before others
        while it is not far ahead of them, so that slots are not filled anew for every row; one that was passed over
        too often goes before all.
        """
        limit = self._policy.look_ahead
        fair = list(itertools.islice(self._preempted.values(), limit))
        waiting = [name for name, tenant in self._tenants.items() if tenant.priorities]
        tenants = heapq.nsmallest(limit, waiting, key=self._shares.spent)
        turns = [self._heads(self._tenants[name], now_s, limit) for name in tenants]
        for heads in itertools.zip_longest(*turns):
            fair += [head for head in heads if head is not None]
        ranked = [WaitingSequence(sequence, rank) for rank, sequence in enumerate(fair[:limit])]
        if len(ranked) < 2:
            return ranked
        least = {name: turn[0] for name, turn in zip(tenants, turns, strict=True)}
        near = self._shares.spent(tenants[0]) + self._policy.residency_slack_tokens if tenants else 0.0

        def preference(candidate: WaitingSequence) -> tuple[int, int]:
            sequence = candidate.sequence
            if sequence.num_preemptions or sequence.num_bypasses >= self._limits.max_bypasses:
                return (0, candidate.fair_rank)
            submit, first = sequence.submit, least[sequence.submit.tenant]
            is_near = (
                submit.priority == first.submit.priority
                and self._shares.spent(submit.tenant) <= near
                and self._spent(sequence) <= self._spent(first) + self._policy.residency_slack_tokens
            )
            return (1 if is_near and is_resident(sequence) else 2, candidate.fair_rank)

        return sorted(ranked, key=preference)

    def _heads(self, tenant: _Tenant, now_s: float, limit: int) -> list[Sequence]:
        """The first sequence of each of a tenant's mixes, in fair order."""
        heads: list[Sequence] = []
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
        return self._tenants[sequence.submit.tenant].mixes.spent(sequence.mix)

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out of what waits."""
        submit = sequence.submit
        if self._preempted.pop(submit.sequence_id, None) is not None:
            return
        tenant = self._tenants[submit.tenant]
        priority = tenant.priorities[submit.priority]
        flow = priority.flows[sequence.mix]
        del flow[submit.sequence_id]
        if not flow:
            del priority.flows[sequence.mix]
            if not priority.flows:
                del tenant.priorities[submit.priority]
        self._places.give_back(submit.tenant)
