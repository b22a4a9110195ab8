"""Drives an engine core from a test, in the test's own thread."""

import itertools
from collections.abc import Sequence

from hotslot.contract.generation import Logprobs, Sampling
from hotslot.errors import HotslotError
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import (
    Activate,
    Activated,
    AdapterUse,
    AdapterWeights,
    SampledToken,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
)

Mix = Sequence[tuple[AdapterWeights, float]]


TWENTY = Logprobs(20)


class Driver:
    """Submits sequences and takes turns until they have ended."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._ids = itertools.count(1)
        self.tokens: dict[SequenceId, list[SampledToken]] = {}
        self.open: set[SequenceId] = set()
        self.failures: dict[SequenceId, HotslotError] = {}
        self.prompt_scores: dict[SequenceId, tuple[SampledToken, ...]] = {}
        self.cached_tokens: dict[SequenceId, int] = {}

    def submit(
        self,
        prompt: Sequence[int],
        mix: Mix = (),
        *,
        max_tokens: int = 8,
        sampling: Sampling | None = None,
        logprobs: Logprobs = TWENTY,
        stop: StopRules | None = None,
    ) -> SequenceId:
        """Queue a sequence that ends after `max_tokens`, or by its own rules."""
        sequence_id = SequenceId(next(self._ids))
        self.tokens[sequence_id] = []
        self.open.add(sequence_id)
        uses = tuple(AdapterUse(weights, weight) for weights, weight in mix)
        self.core.handle(
            Submit(
                sequence_id,
                tuple(prompt),
                uses,
                sampling or Sampling(),
                stop or StopRules(max_tokens),
                arrival_s=0.0,
                logprobs=logprobs,
            )
        )
        return sequence_id

    def turn(self) -> None:
        """One turn of the engine."""
        for event in self.core.turn():
            match event:
                case TokenReady(sequence_id, token):
                    if not self.tokens[sequence_id]:
                        self.prompt_scores[sequence_id] = event.prompt_logprobs
                        self.cached_tokens[sequence_id] = event.cached_tokens
                    self.tokens[sequence_id].append(token)
                case SequenceFinished(sequence_id):
                    self.open.discard(sequence_id)
                case SequenceFailed(sequence_id, error):
                    self.open.discard(sequence_id)
                    self.failures[sequence_id] = error

    def finish(self) -> None:
        """Turn until every sequence has ended; fails if one failed."""
        while self.open or self.core._attempts.num_launched:
            self.turn()
        assert not self.failures, self.failures

    def token_ids(self, sequence_id: SequenceId) -> list[int]:
        """What a sequence answered."""
        return [token.token_id for token in self.tokens[sequence_id]]

    def activate(self, weights: AdapterWeights) -> Activated:
        """Bring an adapter into slots."""
        outcomes: list[Activated | HotslotError] = []
        self.core.handle(Activate(weights, pin=False, done=outcomes.append))
        while not outcomes:
            self.turn()
        outcome = outcomes[0]
        assert isinstance(outcome, Activated), outcome
        return outcome
