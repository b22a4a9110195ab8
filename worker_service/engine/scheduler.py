"""The scheduler: which sequences have rows, and how many tokens of each the next step computes.

Pure state: nothing here computes, waits or reads a clock.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hotslot.ids import Digest
from worker_service.engine.budget import share_budget
from worker_service.engine.giving_way import Hold, Owner, giving_way, heaviest, may_pass
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.messages import SequenceId
from worker_service.engine.residency import Residency
from worker_service.engine.sequence import Sequence
from worker_service.engine.sequence_blocks import SequenceBlocks
from worker_service.engine.waiting import WaitingQueue, WaitingSequence
from worker_service.engine.work import Work

LOOK_EVERY = 0.25
"""Part of a slice after which owners that share are looked at again."""


@dataclass(frozen=True, slots=True)
class _Drain:
    """A sequence that was passed over too often, and the adapters that take no new users until it has slots."""

    sequence: Sequence
    digests: frozenset[Digest]


class Scheduler:
    """Waiting and running sequences.

    **Invariant**: a running sequence holds a row, blocks for all of its tokens, and all of its adapters count it as a
    user; a waiting one holds neither rows nor KV blocks. Ending a sequence in any way goes through `remove`, which
    frees all that it held.
    """

    def __init__(self, limits: EngineLimits, policy: EnginePolicy, residency: Residency) -> None:
        self._limits = limits
        self._policy = policy
        self._residency = residency
        self.kv = SequenceBlocks(limits, policy)
        self.waiting = WaitingQueue(limits, policy)
        self.running: list[Sequence] = []
        """In the order in which they got their row."""
        self._by_id: dict[SequenceId, Sequence] = {}
        self._drain: _Drain | None = None
        self._is_settled = True
        self._look_at = 0.0
        """Tokens that are charged when owners may have to take turns, whatever else happens."""
        self.num_preemptions = 0

    def __iter__(self) -> Iterator[Sequence]:
        """All sequences that have not ended."""
        return iter(tuple(self._by_id.values()))

    def get(self, sequence_id: SequenceId) -> Sequence | None:
        """The sequence with this id, if it has not ended."""
        return self._by_id.get(sequence_id)

    def add(self, sequence: Sequence, now_s: float) -> None:
        """Queue a new sequence."""
        self._by_id[sequence.submit.sequence_id] = sequence
        self.waiting.add(sequence, now_s)
        self.look_again()

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its row, blocks and slots."""
        del self._by_id[sequence.submit.sequence_id]
        self.waiting.leave(sequence)
        if sequence.has_row:
            self.running.remove(sequence)
        self.kv.free(sequence)
        self._residency.release(sequence)
        self.look_again()

    def look_again(self) -> None:
        """Something changed that may let a sequence have a row, or an adapter slots."""
        self._is_settled = False

    @property
    def _is_contended(self) -> bool:
        return len(self.waiting) > 0 and self.waiting.is_shared

    @property
    def may_make_way(self) -> bool:
        """True if `admit` may take from running sequences what they hold."""
        return self._is_contended and (not self._is_settled or self.waiting.charged >= self._look_at)

    def admit(self, now_s: float, *, may_preempt: bool = True) -> None:
        """Give free rows to waiting sequences whose adapters are in slots or can be, then bring adapters ahead.

        A sequence whose adapters find no slots is passed over by later ones, but only `max_bypasses` times: then the
        adapters with the fewest users take no more, until it has their slots. An owner that holds less than others may
        have rows, blocks and slots that running sequences hold, where the step does not go on with these.
        """
        is_contended = self._is_contended
        if self._is_settled and not self.may_make_way:
            return
        self._is_settled = True
        self._look_at = self.waiting.charged + LOOK_EVERY * self._policy.slice_tokens
        order = self.waiting.candidates(now_s, self._residency.is_resident) if len(self.waiting) else []
        while order and len(self.running) < self._limits.max_running and self._admit_one(order, now_s):
            order = self.waiting.candidates(now_s, self._residency.is_resident)
        if is_contended:
            while may_preempt and order and self._make_way(order, now_s):
                order = self.waiting.candidates(now_s, self._residency.is_resident)
            self._is_settled &= may_preempt
        # Slots that are being emptied for a sequence are not filled again before it has them.
        if order and self._current_drain() is None and self._residency.can_bring_ahead:
            self._residency.bring_ahead(candidate.sequence for candidate in order)

    def has_row_for(self, owner: Owner) -> bool:
        """Tell whether an owner of whom nothing waits would have a row at once."""
        rows = [Hold(each.owner, 1) for each in self.running]
        num_free = self._limits.max_running - len(rows)
        return giving_way(rows, owner, 1, num_free, lambda first, second: 0.0, math.inf) is not None

    def schedule(self, now_s: float) -> list[Work]:
        """The next step: a token for every sequence that generates, then chunks of prompts in the room that is left.

        Sequences whose adapters are still being copied sit out. When KV blocks run out, the sequence that got its row
        last gives its blocks up and is computed again later.
        """
        work: list[Work] = []
        prompts: list[Sequence] = []
        for sequence in tuple(self.running):
            if not sequence.has_row or not self._is_ready(sequence, now_s):
                continue
            if sequence.num_awaited and not self._may_run_ahead(sequence):
                continue
            if sequence.num_uncomputed > 1:
                self.kv.catch_up(sequence)
            if sequence.num_uncomputed > 1:
                prompts.append(sequence)
            elif self._grow(sequence, work):
                work.append(Work.of(sequence, 1))
        # A sequence that was preempted to let another grow has no row any more.
        prompts = [sequence for sequence in prompts if sequence.has_row]
        shares = share_budget([s.num_uncomputed for s in prompts], self._limits.max_step_tokens - len(work))
        return work + [Work.of(s, count) for s, count in zip(prompts, shares, strict=True) if count]

    def _may_run_ahead(self, sequence: Sequence) -> bool:
        """Tell whether the next token can be computed from one that is still being chosen.

        Not where that ends the sequence anyway, nor where the sequence lost its row since, and has to compute more.
        """
        return not sequence.num_uncomputed and sequence.may_outlive(1, self._limits.max_sequence_tokens)

    def _is_ready(self, sequence: Sequence, now_s: float) -> bool:
        """Tell whether all adapters of a running sequence have been copied; its gates are known from then on."""
        if sequence.gates is None:
            sequence.gates = self._residency.gates(sequence)
            if sequence.gates is None:
                return False
            sequence.adapters_ready_s = sequence.adapters_ready_s or now_s
        return True

    def any_ready(self, now_s: float) -> bool:
        """Tell whether a step would compute anything."""
        return any(self._is_ready(sequence, now_s) for sequence in self.running)

    def _admit_one(self, order: list[WaitingSequence], now_s: float) -> bool:
        """Give a row to the best of these that can have one."""
        for candidate in order:
            sequence = candidate.sequence
            if not self._leaves_alone(self._current_drain(), sequence):
                continue
            keep = self._needed_before(candidate, order)
            if not self._residency.can_hold(sequence, keep):
                if sequence.num_bypasses >= self._limits.max_bypasses:
                    self._start_draining(sequence)
                continue
            if not self.kv.allocate(sequence):
                return False
            self._residency.hold(sequence, keep)
            self._give_row(candidate, order, now_s)
            return True
        return False

    def _give_row(self, candidate: WaitingSequence, order: list[WaitingSequence], now_s: float) -> None:
        sequence = candidate.sequence
        self.waiting.take(sequence, now_s)
        sequence.has_row = True
        sequence.row_s = sequence.row_s or now_s
        self.running.append(sequence)
        for other in order:
            other.sequence.num_bypasses += other.fair_rank < candidate.fair_rank

    def _make_way(self, order: list[WaitingSequence], now_s: float) -> bool:
        """Give a row to a sequence of an owner that holds less than others, who give way."""
        for candidate in self.waiting.claimants(order):
            sequence = candidate.sequence
            if not self._leaves_alone(self._current_drain(), sequence):
                continue
            victims = self._victims_for(candidate, order)
            if victims is None:
                continue
            for victim in victims:
                if victim.has_row:
                    self._preempt(victim)
                if not self._residency.can_hold(sequence, ()):
                    self._residency.release(victim)
                    victim.gates = None
            if self._residency.can_hold(sequence, ()) and self.kv.allocate(sequence):
                self._residency.hold(sequence, ())
                self._give_row(candidate, order, now_s)
                return True
        return False

    def _victims_for(self, candidate: WaitingSequence, order: list[WaitingSequence]) -> list[Sequence] | None:
        """Sequences that give way to one that waits, so that it finds a row, blocks and slots; None if it has to wait.

        Where they can only take turns, they do so by a slice and by as many tokens as it may take to compute one again.
        """
        sequence, running = candidate.sequence, self.running
        claimant, lead = sequence.owner, self.waiting.lead
        slice_tokens = self._policy.slice_tokens + max((len(each.token_ids) for each in running), default=0)
        rows = [Hold(each.owner, 1) for each in running]
        given = giving_way(rows, claimant, 1, self._limits.max_running - len(running), lead, slice_tokens)
        if given is None:
            return None
        victims = [running[index] for index in given]

        slots = self._residency.holds(self, sequence.weights)
        left = [(hold, users) for hold, users in slots if any(user not in victims for user in users)]
        freed = sum(hold.amount for hold, users in slots if hold.may_end and all(user in victims for user in users))
        lacking = self._residency.num_lacking(sequence)
        given = giving_way([hold for hold, _ in left], claimant, lacking, freed, lead, slice_tokens)
        if given is None:
            return None
        victims += [user for index in given for user in left[index][1] if user not in victims]

        rest = [each for each in running if each not in victims]
        num_free = self.kv.blocks.num_free + sum(self.kv.num_own(each) for each in victims)
        blocks = [Hold(each.owner, self.kv.num_own(each)) for each in rest]
        needed = self.kv.num_needed(sequence)
        given = giving_way(blocks, claimant, needed, num_free, lead, slice_tokens)
        if given is None:
            return None
        victims += [rest[index] for index in given]
        if not victims:
            # What it needs is free, and the turn of others that need more.
            before = [each.sequence for each in order if each.fair_rank < candidate.fair_rank]
            is_patient = all(each.num_bypasses < self._limits.max_bypasses for each in before)
            if not (is_patient and may_pass(blocks, claimant, needed, {each.owner for each in before} - {claimant})):
                return None
        return victims

    def _current_drain(self) -> _Drain | None:
        drain = self._drain
        if drain is not None and (drain.sequence.holds_slots or drain.sequence.submit.sequence_id not in self._by_id):
            drain = self._drain = None
        return drain

    def _leaves_alone(self, drain: _Drain | None, sequence: Sequence) -> bool:
        """Tell whether a sequence takes none of the slots that are being emptied for another."""
        if drain is None or sequence is drain.sequence or sequence.holds_slots:
            return True
        return self._residency.is_resident(sequence) and drain.digests.isdisjoint(sequence.weights)

    def _start_draining(self, sequence: Sequence) -> None:
        already = self._drain.digests if self._drain is not None else frozenset()
        self._drain = _Drain(sequence, self._residency.slots.to_drain(sequence.weights, already))

    def _needed_before(self, candidate: WaitingSequence, order: list[WaitingSequence]) -> set[Digest]:
        """Adapters of the sequences whose turn is before this one's."""
        sequence = candidate.sequence
        if sequence.num_bypasses >= self._limits.max_bypasses or self._residency.is_resident(sequence):
            return set()
        return {d for other in order if other.fair_rank < candidate.fair_rank for d in other.sequence.weights}

    def _grow(self, sequence: Sequence, scheduled: list[Work]) -> bool:
        """Give a sequence room for its next token, preempting the last row of who holds most blocks, even itself."""
        while not self.kv.grow(sequence):
            busy = {id(work.sequence) for work in scheduled}
            holds = [Hold(each.owner, len(each.blocks)) for each in self.running]
            among = [index for index, each in enumerate(self.running) if id(each) not in busy]
            victim = self.running[heaviest(holds, among)]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's row and blocks; it waits in front of its tenant's and is recomputed. It keeps its slots."""
        self.running.remove(sequence)
        self.kv.free(sequence)
        sequence.has_row = False
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        if sequence.wants_prompt_scores:
            sequence.prompt_scores.clear()
        self.waiting.put_back(sequence)
        self.look_again()
