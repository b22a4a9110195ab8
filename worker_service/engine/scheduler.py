"""The scheduler: which sequences compute how many tokens in the next step.

Pure state: nothing here computes, waits or reads a clock.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from worker_service.engine.kv_blocks import KvBlocks
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment, SequenceId
from worker_service.engine.sequence import Sequence
from worker_service.engine.slots import Reservation, SlotTable


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of one sequence to compute in a step, from `num_computed` on."""

    sequence: Sequence
    num_tokens: int

    @property
    def wants_token(self) -> bool:
        """The step ends at the sequence's last token, so the next one is sampled."""
        return self.num_tokens == self.sequence.num_uncomputed

    def segment(self, slots: SlotTable) -> Segment:
        """What the model is asked to compute."""
        sequence, submit = self.sequence, self.sequence.submit
        gates: list[tuple[int, float]] = []
        for use in submit.adapters:
            holder = slots.get(use.weights.digest)
            assert holder is not None, "a running sequence's adapters are in slots"
            assert holder.ready, "a running sequence's adapters are copied"
            if use.weight != 0.0:
                gates.extend((slot, use.weight) for slot in holder.slots)
        begin = sequence.num_computed
        early = sequence.num_generated < submit.stop.min_tokens
        return Segment(
            token_ids=tuple(sequence.token_ids[begin : begin + self.num_tokens]),
            start=begin,
            block_table=tuple(sequence.blocks),
            gates=tuple(gates),
            sampling=submit.sampling if self.wants_token else None,
            history=sequence.token_ids,
            num_prompt_tokens=sequence.num_prompt_tokens,
            banned_token_ids=submit.stop.stop_token_ids if early else frozenset(),
        )


@dataclass
class Scheduler:
    """Waiting and running sequences.

    **Invariant**: a running sequence holds a row, and all of its adapters count it as a user; a waiting one holds
    neither rows nor KV blocks. Ending a sequence in any way goes through `remove`, which frees all that it held.
    """

    limits: EngineLimits
    slots: SlotTable
    blocks: KvBlocks
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    """In the order in which they got their row."""

    def get(self, sequence_id: SequenceId) -> Sequence | None:
        """The sequence with this id, if it has not ended."""
        for sequence in (*self.running, *self.waiting):
            if sequence.submit.sequence_id == sequence_id:
                return sequence
        return None

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those of its priority and higher."""
        index = len(self.waiting)
        while index > 0 and self.waiting[index - 1].submit.priority < sequence.submit.priority:
            index -= 1
        self.waiting.insert(index, sequence)

    def remove(self, sequence: Sequence, now_s: float) -> None:
        """Forget a sequence and free its row, blocks and slots."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._free_blocks(sequence)
        self._release_slots(sequence, now_s)

    def admit(self, now_s: float) -> list[Reservation]:
        """Give free rows to waiting sequences whose adapters are in slots or can be; returns what must be copied.

        A sequence whose adapters find no slots is passed over by later ones, but only so often: then nobody else gets
        a row until it does, so the slots that it needs drain.
        """
        reservations: list[Reservation] = []
        passed_over: list[Sequence] = []
        for sequence in list(self.waiting):
            if len(self.running) >= self.limits.max_running:
                break
            first_chunk = min(len(sequence.token_ids), self.limits.max_step_tokens)
            if self.blocks.num_free < self.limits.blocks_for(first_chunk):
                break
            reservation = self._hold_slots(sequence, now_s)
            if reservation is None:
                passed_over.append(sequence)
                if sequence.num_bypasses >= self.limits.max_bypasses:
                    break
                continue
            if reservation.placed:
                reservations.append(reservation)
            for earlier in passed_over:
                earlier.num_bypasses += 1
            self.waiting.remove(sequence)
            self.running.append(sequence)
        return reservations

    def schedule(self, now_s: float) -> list[Work]:
        """The next step: a token for every sequence that generates, then chunks of prompts in the room that is left.

        Sequences whose adapters are still being copied sit out. When KV blocks run out, the sequence that got its row
        last gives its blocks up and is computed again later.
        """
        ready = [s for s in self.running if self.is_ready(s)]
        for sequence in ready:
            if not sequence.adapters_ready_s:
                sequence.adapters_ready_s = now_s
        work: list[Work] = []
        budget = self.limits.max_step_tokens
        by_need = sorted(ready, key=lambda s: s.num_uncomputed > 1)
        for sequence in by_need:
            if budget == 0:
                break
            if sequence not in self.running:
                continue
            num_tokens = min(sequence.num_uncomputed, budget)
            if not self._ensure_blocks(sequence, sequence.num_computed + num_tokens, [w.sequence for w in work]):
                continue
            work.append(Work(sequence, num_tokens))
            budget -= num_tokens
        return work

    def is_ready(self, sequence: Sequence) -> bool:
        """Whether all adapters of a running sequence have been copied."""
        for digest in sequence.ranks:
            holder = self.slots.get(digest)
            assert holder is not None, "a running sequence's adapters are in slots"
            if not holder.ready:
                return False
        return True

    def _ensure_blocks(self, sequence: Sequence, num_tokens: int, scheduled: Collection[Sequence]) -> bool:
        """Give the sequence blocks up to `num_tokens`, preempting the sequence that got its row last, even itself."""
        count = self.limits.blocks_for(num_tokens) - len(sequence.blocks)
        while count > 0:
            taken = self.blocks.take(count, sequence.blocks, self._expected_blocks(sequence))
            if taken is not None:
                sequence.blocks.extend(taken)
                break
            victim = next((s for s in reversed(self.running) if s.blocks and s not in scheduled), None)
            if victim is None:
                return False
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _expected_blocks(self, sequence: Sequence) -> int:
        most = min(sequence.num_prompt_tokens + sequence.submit.stop.max_tokens, self.limits.max_sequence_tokens)
        return self.limits.blocks_for(most)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's row and blocks; it waits in front of the others and is recomputed. It keeps its slots."""
        self.running.remove(sequence)
        self._free_blocks(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)

    def _hold_slots(self, sequence: Sequence, now_s: float) -> Reservation | None:
        """Count the sequence as a user of its adapters, reserving slots for those that have none."""
        if sequence.holds_slots:
            return Reservation((), ())
        reservation = self.slots.reserve(sequence.ranks, now_s)
        if reservation is None:
            return None
        for digest in sequence.ranks:
            self.slots.acquire(digest)
        sequence.holds_slots = True
        return reservation

    def _release_slots(self, sequence: Sequence, now_s: float) -> None:
        if sequence.holds_slots:
            for digest in sequence.ranks:
                self.slots.release(digest, now_s)
            sequence.holds_slots = False

    def _free_blocks(self, sequence: Sequence) -> None:
        self.blocks.give_back(sequence.blocks)
        sequence.blocks = []
