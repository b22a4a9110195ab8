"""A core over the fake model, with a clock that ticks once a turn, for tests of single behaviours."""

from collections.abc import Sequence
from dataclasses import replace

from hotslot.contract.generation import Sampling
from hotslot.ids import DEFAULT_TENANT, NO_PARTY, Digest, PartyId, TenantId
from tests.support.fake_model import FakeAdapter, FakeRunner, next_token
from worker_service.engine.core import EngineCore
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.listener import EngineListener
from worker_service.engine.messages import (
    NO_LOGPROBS,
    AdapterUse,
    Cancel,
    EngineEvent,
    Inspect,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
)
from worker_service.engine.snapshot import EngineSnapshot


def small_limits(**changes: int) -> EngineLimits:
    """Two slots, two rows and six blocks of four tokens, unless the changes say something else."""
    values = {
        "num_slots": 2,
        "slot_rank": 4,
        "max_running": 2,
        "max_waiting": 100,
        "num_blocks": 6,
        "block_tokens": 4,
        "max_step_tokens": 8,
        "max_sequence_tokens": 24,
        "max_bypasses": 3,
    }
    return EngineLimits(**(values | changes))


def adapter(number: int, max_rank: int = 4) -> FakeAdapter:
    """An adapter that takes one slot of four ranks, or more."""
    return FakeAdapter(Digest(f"sha256:{number:064x}"), max_rank)


def expected(prompt: Sequence[int], count: int, *uses: FakeAdapter) -> list[int]:
    """What the fake model answers."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, [(use.digest, 1.0) for use in uses]))
    return tokens[len(prompt) :]


class Bench:
    """Submits by number, and remembers every event."""

    def __init__(
        self, bounds: EngineLimits, policy: EnginePolicy | None = None, listener: EngineListener | None = None
    ) -> None:
        self.now_s = 0.0
        self.tick_s = 1.0
        """How long a turn takes."""
        self.runner = FakeRunner(bounds)
        self.core = EngineCore(self.runner, bounds, lambda: self.now_s, policy, listener)
        self.events: list[EngineEvent] = []

    def submit(
        self,
        number: int,
        prompt: Sequence[int],
        *uses: FakeAdapter,
        max_tokens: int = 4,
        deadline_s: float | None = None,
        priority: int = 0,
        tenant: TenantId = DEFAULT_TENANT,
        weight: float = 1.0,
        prompt_logprobs: bool = False,
        party: PartyId = NO_PARTY,
    ) -> None:
        """Submit a sequence now."""
        self.core.handle(
            Submit(
                SequenceId(number),
                tuple(prompt),
                tuple(AdapterUse(use, weight) for use in uses),
                Sampling(),
                StopRules(max_tokens),
                self.now_s,
                deadline_s,
                priority,
                tenant,
                replace(NO_LOGPROBS, prompt=prompt_logprobs),
                party,
            )
        )

    def cancel(self, number: int) -> None:
        """Cancel a sequence."""
        self.core.handle(Cancel(SequenceId(number)))

    def turns(self, count: int) -> None:
        """Take turns."""
        for _ in range(count):
            self.now_s += self.tick_s
            self.events += self.core.turn()
            assert self.runner.mix_up is None, self.runner.mix_up

    def run(self) -> None:
        """Take turns until nothing is left to do."""
        for _ in range(10_000):
            if self.core.idle:
                return
            self.turns(1)
        raise AssertionError("the engine is never done")

    def tokens(self, number: int) -> list[int]:
        """What a sequence has answered so far."""
        return [e.token.token_id for e in self.events if isinstance(e, TokenReady) and e.sequence_id == number]

    def first(self, number: int) -> TokenReady:
        """The event of a sequence's first token."""
        return next(e for e in self.events if isinstance(e, TokenReady) and e.sequence_id == number)

    def begun(self) -> list[int]:
        """Sequences in the order of their first tokens."""
        return list(dict.fromkeys(int(e.sequence_id) for e in self.events if isinstance(e, TokenReady)))

    def finished(self) -> list[int]:
        """Sequences that ended by themselves, in order."""
        return [int(e.sequence_id) for e in self.events if isinstance(e, SequenceFinished)]

    def failed(self) -> dict[int, str]:
        """Sequences that failed, with the names of their errors' classes."""
        return {int(e.sequence_id): type(e.error).__name__ for e in self.events if isinstance(e, SequenceFailed)}

    def snapshot(self) -> EngineSnapshot:
        """The state now."""
        taken: list[EngineSnapshot] = []
        self.core.handle(Inspect(taken.append))
        return taken[0]

    def num_computed(self, first_token: int) -> int:
        """Tokens that were computed, over all steps, for sequences whose prompt begins with this token."""
        return sum(len(s.token_ids) for step in self.runner.steps for s in step if s.history[0] == first_token)
