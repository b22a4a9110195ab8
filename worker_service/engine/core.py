"""What the engine does in one turn: expire, admit, copy, step, deactivate. No thread and no waiting in here."""

from collections.abc import Callable

import structlog

from shared.errors import HotslotError, InternalError, QueueFullError, RequestDeadlineError, SlotsFullError
from shared.ids import Digest
from worker_service.engine.copies import CopyQueue
from worker_service.engine.kv_blocks import KvBlocks
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import (
    Activate,
    Activated,
    AdapterWeights,
    Cancel,
    Command,
    Deactivate,
    EngineSnapshot,
    Event,
    FinishReason,
    GiveUpDeactivate,
    Inspect,
    ModelRunner,
    SampledToken,
    SequenceFailed,
    SequenceFinished,
    SlotHolder,
    Submit,
    TokenReady,
    Unpin,
)
from worker_service.engine.scheduler import Scheduler, Work
from worker_service.engine.sequence import Sequence
from worker_service.engine.slots import Reservation, SlotTable

log = structlog.get_logger(__name__)

SLOTS_RETRY_AFTER_S = 1.0
QUEUE_RETRY_AFTER_S = 1.0


class EngineCore:
    """Owns the model, the slots and the KV blocks.

    **Invariant**: one thread calls this; it may wait for the model, never for anything else.
    """

    def __init__(self, runner: ModelRunner, limits: EngineLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._runner = runner
        self._clock = clock
        self._slots = SlotTable(limits)
        self._scheduler = Scheduler(limits, self._slots, KvBlocks(limits.num_blocks))
        self._copies = CopyQueue(runner, clock)
        self._deactivations: dict[Digest, list[Deactivate]] = {}
        self._events: list[Event] = []
        self._steps = 0
        self._generated_tokens = 0
        self._activations = 0

    @property
    def idle(self) -> bool:
        """Whether nothing will happen before the next command."""
        return not (self._scheduler.running or self._scheduler.waiting or len(self._copies))

    def turn(self) -> list[Event]:
        """Run every phase once; returns what happened to sequences since the last turn."""
        self._expire()
        self._admit()
        self._copy()
        self._step()
        self._deactivate()
        events, self._events = self._events, []
        return events

    def _expire(self) -> None:
        now_s = self._clock()
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            deadline_s = sequence.submit.deadline_s
            if deadline_s is not None and deadline_s <= now_s:
                generated = sequence.num_generated
                self._fail(sequence, RequestDeadlineError(f"the deadline passed after {generated} tokens"))

    def _admit(self) -> None:
        for reservation in self._scheduler.admit(self._clock()):
            self._begin_copies(reservation)
        if not self._scheduler.running and not len(self._copies):
            # Nothing runs and nothing is on its way, so what waits now waits for ever: only pinned adapters can be
            # in its way, pinned since it was queued.
            for sequence in list(self._scheduler.waiting):
                self._fail(sequence, self._slots_full(sequence.ranks))

    def _copy(self) -> None:
        """One slice while something runs; all there is while nothing does."""
        while len(self._copies):
            try:
                finished = self._copies.advance()
            except Exception as exc:
                log.exception("activation_failed")
                self._abandon_copy(exc)
                continue
            if finished is not None:
                self._activations += 1
                for asked_s, done in finished.waiters:
                    wait_s = max(self._clock() - asked_s - finished.copy_s, 0.0)
                    done(Activated(finished.holder.digest, finished.holder.slots, False, wait_s, finished.copy_s))
            if self._anything_ready():
                return

    def _step(self) -> None:
        now_s = self._clock()
        work = self._scheduler.schedule(now_s)
        if not work:
            return
        for item in work:
            if item.sequence.started_s is None:
                item.sequence.started_s = now_s
        try:
            results = self._runner.run([item.segment(self._slots) for item in work])
        except Exception as exc:
            log.exception("step_failed", sequences=len(work))
            error = InternalError("a step of the model failed; the worker's log has the details")
            error.__cause__ = exc
            for item in work:
                self._fail(item.sequence, error)
            return
        self._steps += 1
        self._settle(work, results)

    def _settle(self, work: list[Work], results: list[SampledToken | None]) -> None:
        """Write down what a step computed and end the sequences that are complete."""
        now_s = self._clock()
        for item, token in zip(work, results, strict=True):
            sequence = item.sequence
            sequence.num_computed += item.num_tokens
            if token is None:
                continue
            sequence.token_ids.append(token.token_id)
            self._generated_tokens += 1
            started_s = sequence.started_s if sequence.started_s is not None else now_s
            self._events.append(
                TokenReady(sequence.submit.sequence_id, token, now_s, started_s, sequence.adapters_ready_s)
            )
            reason = sequence.finish_reason(self.limits.max_sequence_tokens)
            if reason is not None:
                stop_id = token.token_id if reason is FinishReason.STOP else None
                self._scheduler.remove(sequence, now_s)
                self._events.append(SequenceFinished(sequence.submit.sequence_id, reason, stop_id, now_s))

    def _deactivate(self) -> None:
        """Free what was asked to go and has no user any more."""
        for digest in list(self._deactivations):
            holder = self._slots.get(digest)
            in_use = holder is not None and (holder.users > 0 or not holder.ready)
            if in_use or any(digest in s.ranks for s in self._scheduler.waiting):
                continue
            if holder is not None:
                self._slots.remove(digest)
            for command in self._deactivations.pop(digest):
                command.done(None)

    def handle(self, command: Command) -> None:
        """Take a command; what it asks for may happen in later turns."""
        match command:
            case Submit():
                self._submit(command)
            case Cancel(sequence_id):
                sequence = self._scheduler.get(sequence_id)
                if sequence is not None:
                    self._scheduler.remove(sequence, self._clock())
            case Activate():
                self._activate(command)
            case Unpin(digest):
                holder = self._slots.get(digest)
                if holder is not None:
                    holder.pinned = False
            case Deactivate(digest):
                self._deactivations.setdefault(digest, []).append(command)
            case GiveUpDeactivate(digest):
                self._deactivations.pop(digest, None)
            case Inspect(done):
                done(self._snapshot())

    def _submit(self, submit: Submit) -> None:
        sequence = Sequence.new(submit)
        error: HotslotError | None = None
        if len(self._scheduler.waiting) >= self.limits.max_waiting:
            error = QueueFullError(
                f"{len(self._scheduler.waiting)} sequences wait already, at most {self.limits.max_waiting} may",
                subject="waiting",
                retry_after_s=QUEUE_RETRY_AFTER_S,
            )
        elif not self._slots.fits_ever(sequence.ranks):
            error = self._slots_full(sequence.ranks)
        if error is not None:
            self._events.append(SequenceFailed(submit.sequence_id, error))
            return
        self._scheduler.add(sequence)

    def _activate(self, command: Activate) -> None:
        digest = command.weights.digest
        ranks = {digest: command.weights.max_rank}
        holder = self._slots.get(digest)
        if holder is None:
            reservation = self._slots.reserve(ranks, self._clock())
            if reservation is None:
                command.done(self._slots_full(ranks))
                return
            self._begin_copies(reservation, command.weights)
            holder = self._slots.get(digest)
        assert holder is not None
        holder.pinned = holder.pinned or command.pin
        copy = self._copies.get(digest)
        if copy is None:
            holder.last_used_s = self._clock()
            command.done(Activated(digest, holder.slots, True, 0.0, 0.0))
        else:
            copy.waiters.append((self._clock(), command.done))

    def _begin_copies(self, reservation: Reservation, *weights: AdapterWeights) -> None:
        by_digest = {w.digest: w for w in weights}
        for sequence in self._scheduler.running:
            by_digest.update({use.weights.digest: use.weights for use in sequence.submit.adapters})
        for holder in reservation.placed:
            self._copies.add(holder, by_digest[holder.digest])

    def _abandon_copy(self, exc: Exception) -> None:
        """A copy failed: everybody who waits for that adapter hears of it, and its slots are free again."""
        copy = self._copies.drop_first()
        digest = copy.holder.digest
        error = exc if isinstance(exc, HotslotError) else InternalError(f"adapter {digest} could not be activated")
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if digest in sequence.ranks:
                self._fail(sequence, error)
        self._slots.remove(digest)
        for _, done in copy.waiters:
            done(error)

    def _fail(self, sequence: Sequence, error: HotslotError) -> None:
        self._scheduler.remove(sequence, self._clock())
        self._events.append(SequenceFailed(sequence.submit.sequence_id, error))

    def _anything_ready(self) -> bool:
        return any(self._scheduler.is_ready(s) for s in self._scheduler.running)

    def _slots_full(self, ranks: dict[Digest, int]) -> SlotsFullError:
        needed = sum(self.limits.slots_for(rank) for rank in ranks.values())
        in_use = sum(len(h.slots) for h in self._slots.holders if not h.evictable)
        return SlotsFullError(
            f"{needed} slots are needed, but {in_use} of {self.limits.num_slots} are in use or pinned; "
            "try again when requests have finished, unpin an adapter, or raise HOTSLOT_NUM_SLOTS",
            subject="slots",
            retry_after_s=SLOTS_RETRY_AFTER_S,
        )

    def _snapshot(self) -> EngineSnapshot:
        users: dict[Digest, int] = {}
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            for digest in sequence.ranks:
                users[digest] = users.get(digest, 0) + 1
        return EngineSnapshot(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            max_running=self.limits.max_running,
            max_waiting=self.limits.max_waiting,
            num_slots=self.limits.num_slots,
            slot_rank=self.limits.slot_rank,
            free_slots=self._slots.num_free,
            holders=tuple(
                SlotHolder(h.digest, h.slots, h.users, h.pinned, h.last_used_s, h.ready) for h in self._slots.holders
            ),
            users=users,
            num_blocks=self.limits.num_blocks,
            free_blocks=self._scheduler.blocks.num_free,
            block_tokens=self.limits.block_tokens,
            steps=self._steps,
            generated_tokens=self._generated_tokens,
            activations=self._activations,
            recompiles=self._runner.recompiles,
        )
