"""Whatever is submitted, cancelled, loaded and evicted in whatever order: tokens are right and nothing leaks."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.errors import HotslotError, InternalError, QueueFullError, RequestDeadlineError, SlotsFullError
from shared.ids import Digest
from tests.support.fake_model import VOCABULARY, FakeAdapter, FakeRunner, next_token
from worker_service.engine.core import EngineCore
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import (
    Activate,
    Activated,
    AdapterUse,
    Cancel,
    Deactivate,
    EngineSnapshot,
    FinishReason,
    Inspect,
    SamplingOptions,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
    Unpin,
)

ADAPTERS = [FakeAdapter(Digest(f"sha256:{i:064x}"), max_rank=rank) for i, rank in enumerate((1, 4, 5, 8, 12, 4, 2))]
BROKEN = FakeAdapter(Digest(f"sha256:{'f' * 64}"), max_rank=6, broken=True)
LIMITS = EngineLimits(
    num_slots=5,
    slot_rank=4,
    max_running=3,
    max_waiting=6,
    num_blocks=6,
    block_tokens=4,
    max_step_tokens=7,
    max_sequence_tokens=24,
    max_bypasses=2,
)


@dataclass
class Expected:
    """What the model says a sequence must become."""

    submit: Submit
    tokens: list[int] = field(default_factory=list)


class EngineMachine(RuleBasedStateMachine):
    """Drives a core at random beside a model of what it must answer."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.runner = FakeRunner(LIMITS)
        self.core = EngineCore(self.runner, LIMITS, lambda: self.now_s)
        self.live: dict[SequenceId, Expected] = {}
        self.pinned: set[Digest] = set()
        self.num_submitted = 0

    @rule(
        prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12),
        mix=st.lists(
            st.tuples(st.sampled_from([*ADAPTERS, BROKEN]), st.sampled_from([1.0, 0.5, -2.0])),
            max_size=2,
            unique_by=lambda use: use[0].digest,
        ),
        max_tokens=st.integers(1, 12),
        deadline_in_s=st.one_of(st.none(), st.integers(1, 30)),
        priority=st.integers(0, 2),
    )
    def submit(
        self,
        prompt: list[int],
        mix: list[tuple[FakeAdapter, float]],
        max_tokens: int,
        deadline_in_s: int | None,
        priority: int,
    ) -> None:
        self.num_submitted += 1
        submit = Submit(
            sequence_id=SequenceId(self.num_submitted),
            prompt_token_ids=tuple(prompt),
            adapters=tuple(AdapterUse(adapter, weight) for adapter, weight in mix),
            sampling=SamplingOptions(),
            stop=StopRules(max_tokens, stop_token_ids=frozenset({7})),
            arrival_s=self.now_s,
            deadline_s=None if deadline_in_s is None else self.now_s + deadline_in_s,
            priority=priority,
        )
        self.live[submit.sequence_id] = Expected(submit)
        self.core.handle(submit)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.live)))
        self.core.handle(Cancel(sequence_id))
        del self.live[sequence_id]

    @rule(adapter=st.sampled_from([*ADAPTERS, BROKEN]), pin=st.booleans())
    def activate(self, adapter: FakeAdapter, pin: bool) -> None:
        def done(outcome: Activated | HotslotError) -> None:
            if isinstance(outcome, Activated):
                assert outcome.digest == adapter.digest
                assert not adapter.broken
            else:
                assert isinstance(outcome, SlotsFullError | InternalError)

        self.core.handle(Activate(adapter, pin, done))
        if pin:
            self.pinned.add(adapter.digest)

    @rule(adapter=st.sampled_from(ADAPTERS))
    def unpin(self, adapter: FakeAdapter) -> None:
        self.core.handle(Unpin(adapter.digest))
        self.pinned.discard(adapter.digest)

    @rule(adapter=st.sampled_from(ADAPTERS))
    def deactivate(self, adapter: FakeAdapter) -> None:
        self.core.handle(Deactivate(adapter.digest, lambda error: None))

    @rule(turns=st.integers(1, 8))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.now_s += 0.5
            self._take_events()

    @precondition(lambda self: any(e.tokens for e in self.live.values()))
    @rule()
    def break_a_step(self) -> None:
        self.runner.fail_next_step = True

    def _take_events(self) -> None:
        for event in self.core.turn():
            if event.sequence_id not in self.live:
                continue
            expected = self.live[event.sequence_id]
            match event:
                case TokenReady(token=token):
                    submit = expected.submit
                    mix = [(use.weights.digest, use.weight) for use in submit.adapters]
                    wanted = next_token([*submit.prompt_token_ids, *expected.tokens], mix)
                    assert token.token_id == wanted, "a token of another adapter, position or sequence"
                    expected.tokens.append(token.token_id)
                case SequenceFinished(reason=reason):
                    stopped = expected.tokens[-1] == 7
                    assert reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
                    assert stopped or len(expected.tokens) == expected.submit.stop.max_tokens
                    del self.live[event.sequence_id]
                case SequenceFailed(error=error):
                    allowed = (SlotsFullError, QueueFullError, RequestDeadlineError, InternalError)
                    assert isinstance(error, allowed)
                    del self.live[event.sequence_id]

    def _snapshot(self) -> EngineSnapshot:
        taken: list[EngineSnapshot] = []
        done: Callable[[EngineSnapshot], None] = taken.append
        self.core.handle(Inspect(done))
        return taken[0]

    @invariant()
    def slots_are_held_once(self) -> None:
        snapshot = self._snapshot()
        held = [slot for holder in snapshot.holders for slot in holder.slots]
        assert len(held) == len(set(held))
        assert len(held) + snapshot.free_slots == LIMITS.num_slots
        assert snapshot.waiting <= LIMITS.max_waiting + LIMITS.max_running
        assert snapshot.running <= LIMITS.max_running

    def teardown(self) -> None:
        """Everything ends, and then nothing is held."""
        for digest in list(self.pinned):
            self.core.handle(Unpin(digest))
        for _ in range(2000):
            if not self.live:
                break
            self.now_s += 0.5
            self._take_events()
        assert not self.live, "sequences never end"
        self._take_events()
        snapshot = self._snapshot()
        assert (snapshot.running, snapshot.waiting) == (0, 0)
        assert snapshot.free_blocks == LIMITS.num_blocks
        assert all(holder.users == 0 for holder in snapshot.holders)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, print_blob=True)
