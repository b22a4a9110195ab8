"""Log-probabilities of tokens that are known already: those of a prompt.

Shapes: R rows, V vocabulary. All arithmetic is fp32.
"""

from collections.abc import Callable, Sequence

import torch

from hotslot.contract.generation import TokenAlternative
from worker_service.engine.messages import SampledToken, Segment


def score(
    segments: Sequence[Segment], logits_at: Callable[[Sequence[int]], torch.Tensor], max_rows: int
) -> list[tuple[SampledToken, ...] | None]:
    """The scores that each segment asks for, from logits of at most `max_rows` positions at a time.

    None for a segment where one of them is not finite.

    `logits_at` maps positions in the step's flat dimension to logits `[R, V]`; rows beyond the positions are padding.
    """
    positions: list[int] = []
    token_ids: list[int] = []
    num_alternatives: list[int] = []
    begin = 0
    for segment in segments:
        scoring = segment.scoring
        if scoring is not None:
            positions += range(begin, begin + len(scoring.token_ids))
            token_ids += scoring.token_ids
            num_alternatives += [scoring.num_alternatives] * len(scoring.token_ids)
        begin += len(segment.token_ids)
    found: list[SampledToken | None] = []
    for first in range(0, len(positions), max_rows):
        rows = slice(first, first + max_rows)
        logits_RV = logits_at(positions[rows])[: len(positions[rows])]
        found += _scores(logits_RV, token_ids[rows], num_alternatives[rows])
    remaining = iter(found)
    return [
        _all_or_none([next(remaining) for _ in segment.scoring.token_ids]) if segment.scoring is not None else ()
        for segment in segments
    ]


def _all_or_none(scores: Sequence[SampledToken | None]) -> tuple[SampledToken, ...] | None:
    known = tuple(score for score in scores if score is not None)
    return known if len(known) == len(scores) else None


def scored(logits_RV: torch.Tensor, token_ids: Sequence[int], num_alternatives: Sequence[int]) -> list[SampledToken]:
    """One for each row: its token's log-probability, with the likeliest alternatives. Every token has a logit."""
    logprobs_RV = logits_RV.log_softmax(-1)
    targets_R1 = torch.tensor(token_ids, device=logprobs_RV.device)[:, None]
    found = logprobs_RV.gather(-1, targets_R1)[:, 0].tolist()
    most = max(num_alternatives)
    values, indices = (t.tolist() for t in logprobs_RV.topk(most)) if most else ([[]] * len(found), [[]] * len(found))
    return [
        SampledToken(token_id, logprob, tuple(map(TokenAlternative, indices[row][:count], values[row][:count])))
        for row, (token_id, logprob, count) in enumerate(zip(token_ids, found, num_alternatives, strict=True))
    ]


def _scores(
    logits_RV: torch.Tensor, token_ids: Sequence[int], num_alternatives: Sequence[int]
) -> list[SampledToken | None]:
    """One for each row; None where the logits are NaN or +inf, or the token has no logit."""
    logits_RV = logits_RV.float()
    last = logits_RV.shape[-1] - 1
    is_finite = logits_RV.amax(-1).isfinite().tolist()
    found = scored(logits_RV, [min(token_id, last) for token_id in token_ids], num_alternatives)
    return [
        score if is_finite[row] and token_id <= last else None
        for row, (score, token_id) in enumerate(zip(found, token_ids, strict=True))
    ]
