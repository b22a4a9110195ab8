"""Whatever is submitted, cancelled, loaded and evicted in whatever order: tokens are right and nothing leaks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hotslot.contract.generation import FinishReason, Sampling
from hotslot.errors import (
    EngineFailedError,
    HotslotError,
    NonFiniteLogitsError,
    QueueFullError,
    RequestDeadlineError,
    SlotsFullError,
    StepFailedError,
)
from hotslot.ids import Digest, PartyId, TenantId
from tests.support.fake_model import (
    NON_FINITE,
    POISON,
    VOCABULARY,
    FakeAdapter,
    FakeRunner,
    logprob_from,
    next_token,
    states,
)
from worker_service.engine.core import EngineCore
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.messages import (
    NO_LOGPROBS,
    Activate,
    Activated,
    AdapterUse,
    Cancel,
    Deactivate,
    Inspect,
    ModelRunner,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
    Unpin,
)
from worker_service.engine.snapshot import EngineSnapshot

ADAPTERS = [FakeAdapter(Digest(f"sha256:{i:064x}"), max_rank=rank) for i, rank in enumerate((1, 4, 5, 8, 12, 4, 2))]
BROKEN = FakeAdapter(Digest(f"sha256:{'f' * 64}"), max_rank=6, broken=True)
LIMITS = EngineLimits(
    num_slots=5,
    slot_rank=4,
    max_running=3,
    max_waiting=9,
    num_blocks=8,
    block_tokens=4,
    max_step_tokens=7,
    max_sequence_tokens=24,
    max_bypasses=2,
)
TENANTS = [TenantId("acme"), TenantId("zeta")]
PARTIES = [PartyId("one"), PartyId("two")]
BEGINNINGS = [[], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 9, 9, 5, 6, 7, 8]]
"""Prompts that begin alike, so that blocks are shared; the last two have a block in common, but not what precedes."""
MOST_TURNS = 400
"""Within this many turns after the last submission all of at most twelve sequences of at most 24 tokens end."""


@dataclass
class Expected:
    """What the model says a sequence must become."""

    submit: Submit
    tokens: list[int] = field(default_factory=list)

    @property
    def mix(self) -> list[tuple[Digest, float]]:
        return [(use.weights.digest, use.weight) for use in self.submit.adapters if use.weight]

    @property
    def all_tokens(self) -> list[int]:
        return [*self.submit.prompt_token_ids, *self.tokens]


class EngineMachine(RuleBasedStateMachine):
    """Drives a core at random beside a model of what it must answer."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.runner = FakeRunner(LIMITS, is_fragile=True)
        policy = EnginePolicy(residency_slack_tokens=20, ageing_s=2.0, slice_tokens=8)
        self.core = EngineCore(self.device(), LIMITS, self._clock, policy)
        self.live: dict[SequenceId, Expected] = {}
        self.seen: list[Expected] = []
        self.pinned: set[Digest] = set()
        """What was asked to be pinned."""
        self.kept: set[Digest] = set()
        """Of these, what was said to be pinned."""
        self.num_submitted = 0

    def device(self) -> ModelRunner:
        return self.runner

    def _clock(self) -> float:
        """Time passes whenever somebody looks."""
        self.now_s += 0.001
        return self.now_s

    @rule(
        beginning=st.sampled_from(BEGINNINGS),
        end=st.one_of(
            st.just([5, 6, 7, 8]),
            st.just([5, 6, POISON]),
            st.just([5, NON_FINITE, 7]),
            st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4),
        ),
        mix=st.lists(
            st.tuples(st.sampled_from([*ADAPTERS, BROKEN]), st.sampled_from([1.0, 0.5, -2.0, 0.0])),
            max_size=2,
            unique_by=lambda use: use[0].digest,
        ),
        max_tokens=st.integers(1, 12),
        deadline_in_s=st.one_of(st.none(), st.integers(1, 30)),
        priority=st.integers(0, 2),
        tenant=st.sampled_from(TENANTS),
        party=st.sampled_from(PARTIES),
        is_alone=st.booleans(),
        prompt_logprobs=st.booleans(),
    )
    def submit(
        self,
        beginning: list[int],
        end: list[int],
        mix: list[tuple[FakeAdapter, float]],
        max_tokens: int,
        deadline_in_s: int | None,
        priority: int,
        tenant: TenantId,
        party: PartyId,
        is_alone: bool,
        prompt_logprobs: bool,
    ) -> None:
        self._submit(
            Submit(
                sequence_id=SequenceId(0),
                prompt_token_ids=(*beginning, *end),
                adapters=tuple(AdapterUse(adapter, weight) for adapter, weight in mix),
                sampling=Sampling(),
                stop=StopRules(max_tokens, stop_token_ids=frozenset({7})),
                arrival_s=self.now_s,
                deadline_s=None if deadline_in_s is None else self.now_s + deadline_in_s,
                priority=priority,
                tenant=tenant,
                logprobs=replace(NO_LOGPROBS, prompt=prompt_logprobs),
                party=party,
                is_alone=is_alone,
            )
        )

    @precondition(lambda self: self.seen)
    @rule(
        data=st.data(),
        changed=st.sampled_from(["nothing", "tenant", "mix", "beginning"]),
        times=st.integers(1, 3),
    )
    def submit_again(self, data: st.DataObject, changed: str, times: int) -> None:
        """Something like what came before, so that the prefix cache has something to find, rightly or wrongly."""
        before = data.draw(st.sampled_from(self.seen)).submit
        prompt, adapters, tenant = before.prompt_token_ids, before.adapters, before.tenant
        match changed:
            case "tenant":
                tenant = next(other for other in TENANTS if other != tenant)
            case "mix":
                adapters = () if adapters else (AdapterUse(ADAPTERS[0], 1.0),)
            case "beginning":
                prompt = ((prompt[0] + 1) % VOCABULARY, *prompt[1:])
        stop = StopRules(3, stop_token_ids=frozenset({7}))
        for _ in range(times):
            self._submit(Submit(SequenceId(0), prompt, adapters, Sampling(), stop, self.now_s, tenant=tenant))

    def _submit(self, draft: Submit) -> None:
        self.num_submitted += 1
        submit = replace(draft, sequence_id=SequenceId(self.num_submitted))
        self.live[submit.sequence_id] = Expected(submit)
        self.seen.append(self.live[submit.sequence_id])
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
                if pin and adapter.digest in self.pinned:
                    self.kept.add(adapter.digest)
            else:
                assert isinstance(outcome, SlotsFullError | EngineFailedError)

        if pin:
            self.pinned.add(adapter.digest)
        self.core.handle(Activate(adapter, pin, done))

    @rule(adapter=st.sampled_from(ADAPTERS))
    def unpin(self, adapter: FakeAdapter) -> None:
        self.core.handle(Unpin(adapter.digest))
        self.pinned.discard(adapter.digest)
        self.kept.discard(adapter.digest)

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
        events = self.core.turn()
        assert self.runner.mix_up is None, self.runner.mix_up
        for event in events:
            if event.sequence_id not in self.live:
                continue
            expected = self.live[event.sequence_id]
            match event:
                case TokenReady(token=token):
                    wanted = next_token(expected.all_tokens, expected.mix)
                    assert token.token_id == wanted, "a token of another adapter, position or sequence"
                    assert not {POISON, NON_FINITE} & set(expected.all_tokens), "its step fails"
                    if not expected.tokens:
                        self._check_first(event, expected)
                    expected.tokens.append(token.token_id)
                case SequenceFinished(reason=reason):
                    stopped = expected.tokens[-1] == 7
                    assert reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
                    assert stopped or len(expected.tokens) == expected.submit.stop.max_tokens
                    del self.live[event.sequence_id]
                case SequenceFailed(error=error):
                    allowed = (SlotsFullError, QueueFullError, RequestDeadlineError, EngineFailedError)
                    known = expected.all_tokens
                    if isinstance(error, StepFailedError):
                        broke_alone = min(self.runner.num_broke_alone, POISON not in known)
                        assert POISON in known or broke_alone, "another sequence broke the step"
                        self.runner.num_broke_alone -= broke_alone
                    elif isinstance(error, NonFiniteLogitsError):
                        assert NON_FINITE in known, "another sequence's logits"
                    else:
                        assert isinstance(error, allowed)
                    del self.live[event.sequence_id]

    def _check_first(self, event: TokenReady, expected: Expected) -> None:
        """What was cached came from this tenant and mix, and the prompt's log-probabilities are the model's."""
        submit, prompt = expected.submit, list(expected.submit.prompt_token_ids)
        beginning = prompt[: event.cached_tokens]
        assert event.cached_tokens < len(prompt)
        assert not beginning or any(
            other is not expected
            and other.submit.tenant == submit.tenant
            and sorted(other.mix) == sorted(expected.mix)
            and other.all_tokens[: len(beginning)] == beginning
            for other in self.seen
        )
        scores = [
            logprob_from(state, token_id)
            for state, token_id in zip(states(prompt, expected.mix), prompt[1:], strict=False)
        ]
        assert [token.logprob for token in event.prompt_logprobs] == (scores if submit.logprobs.prompt else [])
        assert not (submit.logprobs.prompt and event.cached_tokens)

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

    @invariant()
    def what_was_pinned_stays_in_its_slots(self) -> None:
        assert self.kept <= {holder.digest for holder in self._snapshot().holders if holder.pinned and holder.ready}

    @invariant()
    def every_block_counts_those_who_hold_it(self) -> None:
        scheduler = self.core._scheduler
        held = Counter(block for sequence in scheduler.running for block in sequence.blocks)
        assert held == scheduler.kv.blocks.users
        assert len(held) + scheduler.kv.blocks.num_free == LIMITS.num_blocks
        users = Counter(d for s in scheduler if s.holds_slots for d in s.weights)
        assert users == Counter({h.digest: h.users for h in self._snapshot().holders if h.users})

    def teardown(self) -> None:
        """Everything ends, and then nothing is held."""
        for digest in list(self.pinned):
            self.core.handle(Unpin(digest))
        for _ in range(MOST_TURNS):
            if not self.live:
                break
            self.now_s += 0.5
            self._take_events()
        assert not self.live, "a sequence starves"
        self._take_events()
        snapshot = self._snapshot()
        assert (snapshot.running, snapshot.waiting) == (0, 0)
        assert not self.core._scheduler.kv.blocks.users
        assert not self.core._scheduler.waiting._parties
        assert self.core.lost is None
        assert snapshot.free_blocks == LIMITS.num_blocks
        assert all(holder.users == 0 for holder in snapshot.holders)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None, print_blob=True)
