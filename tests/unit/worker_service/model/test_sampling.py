"""What is drawn: a legal token with a finite log-probability, however extreme the settings that validation accepts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hotslot.contract.generation import GenerationRequest, Logprobs, Sampling
from worker_service.engine.messages import NO_LOGPROBS, Scoring, Segment
from worker_service.front.validation import (
    MAX_BIAS,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    RequestLimits,
    check,
)
from worker_service.model.sampling import sample
from worker_service.model.scoring import score

VOCAB_SIZE = 64
LIMITS = RequestLimits(VOCAB_SIZE, max_sequence_tokens=512, max_choices=16, max_adapters=4)
HISTORY = (3, 4, 7, 7, 9)
NUM_PROMPT_TOKENS = 2
BANNED = frozenset({0, 5})
TINY = (5e-324, 1e-46, 1e-40, 1e-38, 1e-37, 1e-20, 1e-9)


def near(lowest: float, highest: float) -> st.SearchStrategy[float]:
    """The whole range, with its ends and what is hardly anything."""
    ends = [x for x in (lowest, highest, 0.0, 1.0, *TINY, *(-x for x in TINY)) if lowest <= x <= highest]
    return st.one_of(st.sampled_from(ends), st.floats(lowest, highest))


ACCEPTED = st.builds(
    Sampling,
    temperature=near(0.0, MAX_TEMPERATURE),
    top_k=st.sampled_from([0, 1, 2, VOCAB_SIZE, VOCAB_SIZE + 1, 2**31 - 1]),
    top_p=near(5e-324, 1.0),
    min_p=near(0.0, 1.0),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=near(MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
    presence_penalty=near(-MAX_PENALTY, MAX_PENALTY),
    frequency_penalty=near(-MAX_PENALTY, MAX_PENALTY),
    logit_bias=st.dictionaries(st.integers(0, VOCAB_SIZE - 1), near(-MAX_BIAS, MAX_BIAS), max_size=4),
)
WANTED = st.builds(Logprobs, st.integers(0, 20))


def logits_of(seed: int, scale: float) -> torch.Tensor:
    """`[1, V]`."""
    return torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * scale


def segment(options: Sampling, banned: frozenset[int] = frozenset(), logprobs: Logprobs = NO_LOGPROBS) -> Segment:
    return Segment(HISTORY, 0, (0,), (), options, HISTORY, NUM_PROMPT_TOKENS, banned, logprobs=logprobs)


# A head puts out some tens; 65,504 is the most that fp16 holds.
@given(
    options=ACCEPTED,
    wanted=WANTED,
    seed=st.integers(0, 100),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 30.0, 16_000.0]),
    bans=st.booleans(),
)
@example(options=Sampling(temperature=1e-38), wanted=Logprobs(), seed=0, scale=5.0, bans=False)
@example(options=Sampling(1e-5, repetition_penalty=0.01), wanted=Logprobs(), seed=0, scale=16_000.0, bans=True)
@settings(max_examples=300, deadline=None)
def test_every_accepted_setting_draws_a_legal_token_with_a_finite_logprob(
    options: Sampling, wanted: Logprobs, seed: int, scale: float, bans: bool
) -> None:
    check(GenerationRequest(HISTORY, sampling=options, logprobs=wanted), LIMITS)
    banned = BANNED if bans else frozenset()
    (token,) = sample(logits_of(seed, scale), [segment(options, banned, wanted)])
    assert token is not None
    assert 0 <= token.token_id < VOCAB_SIZE
    assert token.token_id not in banned
    assert token.logprob is not None
    assert math.isfinite(token.logprob)
    assert len(token.alternatives) == wanted.num_alternatives
    assert all(math.isfinite(other.logprob) for other in token.alternatives)


@pytest.mark.parametrize("temperature", [0.0, *TINY, 1e-6, 1e-5])
def test_hardly_any_temperature_takes_the_most_likely_token(temperature: float) -> None:
    for seed in range(20):
        logits_RV = logits_of(seed, 5.0)
        (token,) = sample(logits_RV.clone(), [segment(Sampling(temperature, seed=seed))])
        assert token is not None
        assert token.token_id == int(logits_RV.argmax())


def test_what_a_row_draws_depends_on_no_row_beside_it() -> None:
    rows = [Sampling(1.0, seed=7), Sampling(0.5, top_p=0.5, seed=8), Sampling()]
    logits_RV = torch.cat([logits_of(seed, 3.0) for seed in range(3)])
    together = sample(logits_RV.clone(), [segment(options) for options in rows])
    alone = [sample(logits_RV[row : row + 1].clone(), [segment(rows[row])])[0] for row in range(3)]
    assert together == alone


BROKEN_LOGITS = {
    "one NaN": (math.nan, 1),
    "all NaN": (math.nan, VOCAB_SIZE),
    "one +inf": (math.inf, 1),
    "all -inf": (-math.inf, VOCAB_SIZE),
}


@given(
    options=ACCEPTED, wanted=WANTED, kind=st.sampled_from(sorted(BROKEN_LOGITS)), place=st.integers(6, VOCAB_SIZE - 1)
)
@settings(max_examples=150, deadline=None)
def test_a_row_whose_logits_are_not_finite_has_no_token_and_the_rows_beside_it_are_as_they_were(
    options: Sampling, wanted: Logprobs, kind: str, place: int
) -> None:
    value, count = BROKEN_LOGITS[kind]
    logits_RV = torch.cat([logits_of(seed, 3.0) for seed in range(3)])
    rows = [segment(options, logprobs=wanted), segment(options, BANNED), segment(Sampling(0.7, seed=3))]
    alone = [sample(logits_RV[row : row + 1].clone(), [rows[row]])[0] for row in range(3)]
    logits_RV[1, torch.arange(place, place + count) % VOCAB_SIZE] = value
    assert sample(logits_RV, rows) == [alone[0], None, alone[2]]


def test_tokens_that_a_model_rules_out_itself_are_no_reason_to_fail() -> None:
    logits_RV = logits_of(1, 3.0)
    logits_RV[0, 10:] = -torch.inf
    (token,) = sample(logits_RV, [segment(Sampling(1.0), logprobs=Logprobs(5))])
    assert token is not None
    assert token.token_id < 10


def test_biases_bans_and_penalties_of_tokens_that_have_no_logit_change_nothing() -> None:
    beyond = Sampling(1.0, repetition_penalty=1.3, frequency_penalty=0.5, logit_bias={VOCAB_SIZE + 3: 5.0})
    within = replace(beyond, logit_bias={})
    history = (*HISTORY, VOCAB_SIZE + 1)
    for seed in range(10):
        rows = [
            Segment(HISTORY, 0, (0,), (), beyond, history, NUM_PROMPT_TOKENS, frozenset({5, VOCAB_SIZE + 9})),
            Segment(HISTORY, 0, (0,), (), within, HISTORY, NUM_PROMPT_TOKENS, frozenset({5})),
        ]
        logits_V = logits_of(seed, 3.0)
        found, expected = sample(torch.cat([logits_V, logits_V]), rows)
        assert found == expected


def test_scores_are_none_for_the_segment_whose_logits_are_not_finite() -> None:
    logits_RV = torch.cat([logits_of(seed, 3.0) for seed in range(4)])
    logits_RV[2, 17] = torch.nan
    rows = [Segment((1, 2), 0, (0,), (), None, scoring=Scoring((2, 3), 2)) for _ in range(2)]
    first, second = score(rows, lambda positions: logits_RV[list(positions)], max_rows=4)
    assert first is not None
    assert len(first) == 2
    assert second is None
    beyond = Segment((1,), 0, (0,), (), None, scoring=Scoring((VOCAB_SIZE + 2,)))
    assert score([beyond], lambda positions: logits_RV[list(positions)], max_rows=4) == [None]
