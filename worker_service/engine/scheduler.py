"""The scheduler: which sequences have rows, and how many tokens of each the next step computes.

Pure state: nothing here computes, waits or reads a clock.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hotslot.ids import Digest
from worker_service.engine.budget import share_budget
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.messages import SequenceId
from worker_service.engine.residency import Residency
from worker_service.engine.sequence import Sequence
from worker_service.engine.sequence_blocks import SequenceBlocks
from worker_service.engine.waiting import WaitingQueue, WaitingSequence
from worker_service.engine.work import Work


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

    def admit(self, now_s: float) -> None:
        """Give free rows to waiting sequences whose adapters are in slots or can be, then bring adapters ahead.

        A sequence whose adapters find no slots is passed over by later ones, but only `max_bypasses` times: then the
        adapters with the fewest users take no more, until it has their slots.
        """
        if self._is_settled:
            return
        self._is_settled = True
        while len(self.waiting) and len(self.running) < self._limits.max_running:
            if not self._admit_one(self.waiting.candidates(now_s, self._residency.is_resident), now_s):
                break
        # Slots that are being emptied for a sequence are not filled again before it has them.
        if len(self.waiting) and self._current_drain() is None and self._residency.can_bring_ahead:
            order = self.waiting.candidates(now_s, self._residency.is_resident)
            self._residency.bring_ahead(candidate.sequence for candidate in order)

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
            if len(sequence.token_ids) - sequence.num_computed > 1:
                self.kv.catch_up(sequence)
            if len(sequence.token_ids) - sequence.num_computed > 1:
                prompts.append(sequence)
            elif self._grow(sequence, work):
                work.append(Work(sequence, 1))
        # A sequence that was preempted to let another grow has no row any more.
        prompts = [sequence for sequence in prompts if sequence.has_row]
        shares = share_budget([s.num_uncomputed for s in prompts], self._limits.max_step_tokens - len(work))
        return work + [Work(s, count) for s, count in zip(prompts, shares, strict=True) if count]

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
            self.waiting.take(sequence, now_s)
            sequence.has_row = True
            sequence.row_s = sequence.row_s or now_s
            self.running.append(sequence)
            for other in order:
                other.sequence.num_bypasses += other.fair_rank < candidate.fair_rank
            return True
        return False

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
        """Give a sequence room for its next token, preempting the sequence that got its row last, even itself."""
        while not self.kv.grow(sequence):
            busy = {id(work.sequence) for work in scheduled}
            victim = next(s for s in reversed(self.running) if id(s) not in busy)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's row and blocks; it waits in front of the others and is recomputed. It keeps its slots."""
        self.running.remove(sequence)
        self.kv.free(sequence)
        sequence.has_row = False
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        if sequence.wants_prompt_scores:
            sequence.prompt_scores.clear()
        self.waiting.put_back(sequence)
        self.look_again()
