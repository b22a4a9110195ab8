"""Changes of single logits before a token is chosen: penalties, biases and bans of all rows at once.

Shapes: R rows, V vocabulary, N changed logits, which stand in the flat dimension of all rows.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from hotslot.contract.generation import Sampling
from worker_service.engine.messages import Segment


@dataclass(frozen=True, slots=True)
class _Places:
    """Logits that one kind of change touches; tokens that have no logit are left out."""

    places_N: torch.Tensor
    rows_N: torch.Tensor
    known_N: torch.Tensor
    """Index among all tokens that were asked for."""

    @classmethod
    def of(cls, tokens_by_row: Sequence[Collection[int]], logits_RV: torch.Tensor) -> "_Places | None":
        """None where no row asks for any."""
        counts = [len(tokens) for tokens in tokens_by_row]
        if not any(counts):
            return None
        token_ids = np.fromiter(chain.from_iterable(tokens_by_row), np.int64, sum(counts))
        vocab = logits_RV.shape[1]
        known = np.flatnonzero(token_ids < vocab)
        rows = np.repeat(np.arange(len(counts)), counts)[known]
        places = rows * vocab + token_ids[known]
        return cls(*(torch.from_numpy(each).to(logits_RV.device) for each in (places, rows, known)))


def adjusted(logits_RV: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """The logits with penalties, biases and bans, in fp32; the ones given, as they are, where no row has any.

    Repetition as in CTRL (Keskar et al. 2019, section 4.1) over prompt and answer; presence and frequency over the
    answer, as in OpenAI's API.
    """
    rows = [(_options(segment), segment) for segment in segments]
    repeated = _Places.of([s.history if o.repetition_penalty != 1.0 else () for o, s in rows], logits_RV)
    answered = _Places.of([_answer(s) if _counts_answer(o) else () for o, s in rows], logits_RV)
    biased = _Places.of([o.logit_bias for o, _ in rows], logits_RV)
    banned = _Places.of([s.banned_token_ids for _, s in rows], logits_RV)
    if repeated is None and answered is None and biased is None and banned is None:
        return logits_RV
    logits_RV = logits_RV.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    logits = logits_RV.view(-1)
    if repeated is not None:
        values_N = logits[repeated.places_N]
        penalties_N = _column([o.repetition_penalty for o, _ in rows], logits)[repeated.rows_N]
        # A token that comes twice is written twice, with the same value.
        logits[repeated.places_N] = torch.where(values_N > 0, values_N / penalties_N, values_N * penalties_N)
    if answered is not None:
        places_N, counts_N = torch.unique(answered.places_N, return_counts=True)
        rows_N = places_N // logits_RV.shape[1]
        frequencies_N = _column([o.frequency_penalty for o, _ in rows], logits)[rows_N]
        presences_N = _column([o.presence_penalty for o, _ in rows], logits)[rows_N]
        logits[places_N] -= frequencies_N * counts_N + presences_N
    if biased is not None:
        biases = _column([bias for o, _ in rows for bias in o.logit_bias.values()], logits)
        logits[biased.places_N] += biases[biased.known_N]
    if banned is not None:
        logits[banned.places_N] = -torch.inf
    return logits_RV


def _options(segment: Segment) -> Sampling:
    assert segment.sampling is not None, "only rows that want a token are sampled"
    return segment.sampling


def _counts_answer(options: Sampling) -> bool:
    return options.presence_penalty != 0.0 or options.frequency_penalty != 0.0


def _answer(segment: Segment) -> Sequence[int]:
    return segment.history[segment.num_prompt_tokens :]


def _column(values: Sequence[float], logits: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=logits.device)
