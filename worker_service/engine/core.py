"""One turn of the engine: expire, admit, copy, step, let go. No thread and no waiting in here."""

from collections.abc import Callable

from hotslot.contract.generation import FinishReason
from hotslot.errors import HotslotError, NonFiniteLogitsError, RequestDeadlineError
from hotslot.ids import Digest
from worker_service.engine.attempts import Attempts, Failure, LandedStep, ModelLostError
from worker_service.engine.deadlines import Deadlines
from worker_service.engine.fair_share import ANSWER_TOKEN_COST
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.listener import EngineListener, SilentListener
from worker_service.engine.messages import (
    Activate,
    Cancel,
    Deactivate,
    EngineCommand,
    EngineEvent,
    GiveUpDeactivate,
    Inspect,
    ModelRunner,
    SampledToken,
    SequenceFailed,
    SequenceFinished,
    Submit,
    TokenReady,
    Unpin,
)
from worker_service.engine.pace import EnginePace
from worker_service.engine.reports import engine_snapshot, sequence_report
from worker_service.engine.residency import Residency
from worker_service.engine.scheduler import Scheduler
from worker_service.engine.sequence import Sequence
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.engine.step_times import StepTimes

COPY_SHARE = 0.25
"""Share by which copies may lengthen the time between two steps."""


class EngineCore:
    """Owns the model, the slots and the KV blocks.

    **Invariant**: one thread calls this; it may wait for the model, never for anything else.
    """

    def __init__(
        self,
        runner: ModelRunner,
        limits: EngineLimits,
        clock: Callable[[], float],
        policy: EnginePolicy | None = None,
        listener: EngineListener | None = None,
    ) -> None:
        self.limits = limits
        self._runner = runner
        self._clock = clock
        self._listener = listener or SilentListener()
        self._residency = Residency(limits, runner, clock, self._listener)
        self._scheduler = Scheduler(limits, policy or EnginePolicy(), self._residency)
        self._attempts = Attempts(runner)
        self._pace = EnginePace(limits)
        self._times = StepTimes(self._pace, self._listener)
        self._deadlines = Deadlines(lambda sequence_id: self._scheduler.get(sequence_id) is not None)
        self._events: list[EngineEvent] = []
        self._generated_tokens = 0

    @property
    def lost(self) -> ModelLostError | None:
        """Reason for which no turn after this one can compute anything; None while turns can."""
        return self._attempts.lost

    @property
    def idle(self) -> bool:
        """True if nothing will happen before the next command."""
        has_sequences = self._scheduler.running or len(self._scheduler.waiting)
        return not (has_sequences or self._residency.num_copying or self._attempts.num_launched)

    def turn(self) -> list[EngineEvent]:
        """Run every phase once; returns what happened to sequences since the last turn."""
        self._expire()
        if self._scheduler.may_make_way:  # a step that its sequence loses before it is known was computed for nothing
            self._land(at_most=0)
        self._scheduler.admit(self._clock(), may_preempt=not self._attempts.is_divided)
        self._copy()
        self._step()
        if self._residency.let_go(self._scheduler.waiting):
            self._scheduler.look_again()
        events, self._events = self._events, []
        return events

    def _expire(self) -> None:
        now_s = self._clock()
        for sequence_id in self._deadlines.due(now_s):
            sequence = self._scheduler.get(sequence_id)
            if sequence is None:
                continue
            deadline_s = sequence.submit.deadline_s
            assert deadline_s is not None
            if deadline_s <= now_s:
                generated = sequence.num_generated
                self._fail(sequence, RequestDeadlineError(f"the deadline passed after {generated} tokens"))
                continue
            soonest_s = 0.0 if sequence.row_s is not None else self._soonest_s(sequence)
            if now_s + soonest_s <= deadline_s:
                self._deadlines.add(deadline_s - soonest_s, sequence_id)
            else:
                self._fail(sequence, self._too_late(soonest_s, deadline_s - now_s))

    def _copy(self) -> None:
        """A slice, or as many as take a small part of a step, while something runs; all there is while nothing does."""
        until_s = self._clock() + COPY_SHARE * self._pace.step_s
        while self._residency.num_copying:
            num_copying = self._residency.num_copying
            failed = self._residency.advance()
            if failed is not None:
                self._abandon(*failed)
            if self._residency.num_copying < num_copying:
                self._scheduler.look_again()
            now_s = self._clock()
            if (now_s >= until_s or self._residency.awaits_device) and self._scheduler.any_ready(now_s):
                return

    def _step(self) -> None:
        """Launch the next step or half, and take in the results of all but as many as the device may be ahead."""
        half = self._attempts.next_half(self._is_alive)
        ahead = self._runner.depth and not half and not any(each.needs_host for each in self._scheduler.running)
        self._land(at_most=ahead)
        began_s = self._clock()
        work = half or ([] if self._attempts.is_divided else self._scheduler.schedule(began_s))
        if not work:
            self._land(at_most=0)
            self._times.pause()
            return
        self._attempts.launch(work, began_s)
        self._land(at_most=0 if self._attempts.has_failed else ahead)

    def _land(self, at_most: int) -> None:
        """Take in results until no more steps than this are launched and not known."""
        while self._attempts.num_launched > at_most:
            match self._attempts.land():
                case Failure() as failure:
                    self._give_up(failure)
                case LandedStep() as landed:
                    self._times.landed(landed, self._clock())
                    self._settle(landed)

    def _is_alive(self, sequence: Sequence) -> bool:
        return self._scheduler.get(sequence.submit.sequence_id) is sequence

    def _give_up(self, failure: Failure) -> None:
        """End sequences that cannot be computed."""
        error = failure.report()
        for item in failure.work:
            if self._is_alive(item.sequence):
                self._fail(item.sequence, error)

    def _settle(self, step: LandedStep) -> None:
        """Write down what a step computed and end the sequences that are complete; drop it for those that ended."""
        now_s = self._clock()
        for item, computed in zip(step.work, step.results, strict=True):
            sequence = item.sequence
            if not self._is_alive(sequence):
                continue
            if not computed.is_finite:
                if item.is_current:
                    self._scheduler.kv.forget(sequence)
                self._fail(sequence, NonFiniteLogitsError(len(sequence.token_ids), [d for d, _ in sequence.mix]))
                continue
            if item.is_current:
                sequence.num_settled = max(sequence.num_settled, item.end)
                sequence.prompt_scores += computed.scores
                self._scheduler.kv.publish(sequence)
            if computed.token is not None:
                self._take_token(sequence, computed.token, now_s)
        if not self._scheduler.running:
            self._times.pause()

    def _take_token(self, sequence: Sequence, token: SampledToken, now_s: float) -> None:
        is_first = sequence.first_token_s is None
        if is_first:
            sequence.first_token_s = now_s
        sequence.token_ids.append(token.token_id)
        self._generated_tokens += 1
        self._scheduler.waiting.charge(sequence, ANSWER_TOKEN_COST)
        self._events.append(
            TokenReady(
                sequence.submit.sequence_id,
                token,
                now_s,
                sequence.started_s or now_s,
                sequence.adapters_ready_s,
                sequence.num_cached or 0,
                tuple(sequence.prompt_scores) if is_first else (),
            )
        )
        reason = sequence.finish_reason(self.limits.max_sequence_tokens)
        if reason is not None:
            stop_id = token.token_id if reason is FinishReason.STOP else None
            self._pace.left_row(now_s - (sequence.row_s or now_s))
            self._end(sequence, reason)
            self._events.append(SequenceFinished(sequence.submit.sequence_id, reason, stop_id, now_s))

    def handle(self, command: EngineCommand) -> None:
        """Take a command; what it asks for may happen in later turns."""
        match command:
            case Submit():
                self._submit(command)
                return
            case Cancel(sequence_id):
                sequence = self._scheduler.get(sequence_id)
                if sequence is not None:
                    self._end(sequence, "cancelled")
                return
            case Activate():
                self._activate(command)
            case Unpin(digest):
                self._residency.unpin(digest)
            case Deactivate():
                self._residency.ask_to_leave(command)
            case GiveUpDeactivate(digest):
                self._residency.let_stay(digest)
            case Inspect(done):
                done(self._snapshot())
        self._scheduler.look_again()

    def _activate(self, command: Activate) -> None:
        self._residency.activate(command)
        if command.pin:
            for sequence in list(self._scheduler.waiting):
                if not sequence.holds_slots and not self._residency.slots.fits_ever(sequence.weights):
                    self._fail(sequence, self._residency.refusal(sequence.weights.values()))

    def _submit(self, submit: Submit) -> None:
        sequence = Sequence.new(submit)
        error = self._refusal(sequence)
        if error is not None:
            self._events.append(SequenceFailed(submit.sequence_id, error))
            self._listener.ended(sequence_report(sequence, type(error).__name__, self._clock()))
            return
        self._scheduler.add(sequence, self._clock())
        if submit.deadline_s is not None:
            self._deadlines.add(submit.deadline_s - self._soonest_s(sequence), submit.sequence_id)

    def _refusal(self, sequence: Sequence) -> HotslotError | None:
        """Reason for which a sequence is not even queued."""
        submit, waiting = sequence.submit, self._scheduler.waiting
        full = waiting.refusal(submit.tenant, self.limits.max_running - len(self._scheduler.running))
        crowding = waiting.crowding(submit.party) if full is not None else None
        if full is not None and crowding is None:
            return full
        if not self._residency.slots.fits_ever(sequence.weights):
            return self._residency.refusal(sequence.weights.values())
        if submit.deadline_s is not None:
            num_before = waiting.num_before(sequence)
            has_row = not num_before and self._scheduler.has_row_for(sequence.owner)
            wait_s = self._pace.row_wait_s(num_before) if not has_row else 0.0
            needed_s, left_s = wait_s + self._soonest_s(sequence), submit.deadline_s - self._clock()
            if needed_s > left_s:
                return self._too_late(needed_s, left_s)
        if full is not None and crowding is not None:
            self._fail(crowding, full)
        return None

    def _soonest_s(self, sequence: Sequence) -> float:
        """Seconds from its row to the first answer that the caller would take."""
        num_missing = self._scheduler.kv.num_missing(sequence)
        return self._pace.tokens_s(num_missing, max(sequence.submit.stop.min_tokens, 1))

    def _too_late(self, needed_s: float, left_s: float) -> RequestDeadlineError:
        return RequestDeadlineError(
            f"the deadline cannot be met: at the present pace the answer would begin in {needed_s:.3g} s, "
            f"{max(left_s, 0.0):.3g} s are left"
        )

    def _abandon(self, digest: Digest, error: HotslotError) -> None:
        """Fail a copy: every waiter for that adapter hears of it, and its slots are free again."""
        for sequence in self._scheduler:
            if digest in sequence.weights:
                self._fail(sequence, error)
        self._residency.slots.remove(digest)

    def _fail(self, sequence: Sequence, error: HotslotError) -> None:
        self._end(sequence, type(error).__name__)
        self._events.append(SequenceFailed(sequence.submit.sequence_id, error))

    def _end(self, sequence: Sequence, outcome: FinishReason | str) -> None:
        self._scheduler.remove(sequence)
        self._listener.ended(sequence_report(sequence, outcome, self._clock()))

    def _snapshot(self) -> EngineSnapshot:
        return engine_snapshot(
            self._scheduler,
            self._residency,
            self.limits,
            self._runner,
            steps=self._times.num_steps,
            generated_tokens=self._generated_tokens,
            longest_stall_s=self._times.longest_stall_s,
        )
