"""Choosing the next token of each row from its logits.

Shapes: R rows, V vocabulary. All arithmetic is fp32.
"""

from collections.abc import Sequence

import torch

from hotslot.contract.generation import Logprobs, Sampling, TokenAlternative
from worker_service.engine.messages import SampledToken, Segment

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1


def sample(logits_RV: torch.Tensor, segments: Sequence[Segment]) -> list[SampledToken | None]:
    """One token for each row, or None where its logits are not finite; row r belongs to `segments[r]`.

    Each segment's `sampling` is set. A row's draws depend on its own logits, seed and position alone, never on the
    rows beside it. A few -inf are how a model itself rules tokens out; a NaN anywhere, +inf or nothing else are none.
    """
    options = [_options(s) for s in segments]
    logits_RV = logits_RV.float()
    for row, segment in enumerate(segments):
        if _changes_logits(options[row], segment):
            logits_RV[row] = _adjust(logits_RV[row], options[row], segment)
    token_ids = logits_RV.argmax(-1)
    # To argmax a NaN is the largest, so what it found tells of all logits of its row.
    is_finite = logits_RV.gather(-1, token_ids[:, None])[:, 0].isfinite().tolist()
    drawn = [row for row, option in enumerate(options) if not option.is_greedy and is_finite[row]]
    if drawn:
        token_ids[drawn] = _draw(logits_RV[drawn], [segments[row] for row in drawn])
    return [
        _sampled(token_id, logits_RV[row], segments[row].logprobs) if is_finite[row] else None
        for row, token_id in enumerate(token_ids.tolist())
    ]


def _options(segment: Segment) -> Sampling:
    assert segment.sampling is not None, "only rows that want a token are sampled"
    return segment.sampling


def _changes_logits(options: Sampling, segment: Segment) -> bool:
    return (
        bool(segment.banned_token_ids)
        or bool(options.logit_bias)
        or options.repetition_penalty != 1.0
        or options.presence_penalty != 0.0
        or options.frequency_penalty != 0.0
    )


def _adjust(logits_V: torch.Tensor, options: Sampling, segment: Segment) -> torch.Tensor:
    """Penalties, biases and bans; those of tokens that have no logit change nothing.

    Repetition as in CTRL (Keskar et al. 2019, section 4.1) over prompt and answer; presence and frequency over the
    answer, as in OpenAI's API.
    """
    logits_V = logits_V.clone()
    device, vocab = logits_V.device, logits_V.shape[0]
    if options.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(t for t in set(segment.history) if t < vocab), dtype=torch.int64, device=device)
        values = logits_V[seen]
        penalty = options.repetition_penalty
        logits_V[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if options.presence_penalty != 0.0 or options.frequency_penalty != 0.0:
        answer = torch.tensor(segment.history[segment.num_prompt_tokens :], dtype=torch.int64, device=device)
        counts_V = torch.bincount(answer, minlength=vocab)[:vocab]
        logits_V -= options.frequency_penalty * counts_V + options.presence_penalty * (counts_V > 0)
    for token_id, bias in options.logit_bias.items():
        if token_id < vocab:
            logits_V[token_id] += bias
    for token_id in segment.banned_token_ids:
        if token_id < vocab:
            logits_V[token_id] = -torch.inf
    return logits_V


def _draw(logits_RV: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """A token for each row, by the Gumbel-max form of sampling from the truncated softmax."""
    options = [_options(s) for s in segments]
    device = logits_RV.device
    temperature_R1 = torch.tensor([[o.temperature] for o in options], dtype=torch.float32, device=device)
    scaled_RV = logits_RV / temperature_R1
    if any(o.top_k > 0 or o.top_p < 1.0 or o.min_p > 0.0 for o in options):
        scaled_RV = _truncate(scaled_RV, options)
    noise_RV = torch.empty_like(scaled_RV)
    for row, segment in enumerate(segments):
        position = segment.start + len(segment.token_ids)
        generator = torch.Generator(device).manual_seed(_mix(options[row].seed or 0, position))
        noise_RV[row].exponential_(generator=generator)
    return (scaled_RV.softmax(-1) / noise_RV).argmax(-1)


def _truncate(scaled_RV: torch.Tensor, options: Sequence[Sampling]) -> torch.Tensor:
    """Rule tokens out by min-p, top-k and top-p, in this order; the most likely token always stays."""
    device = scaled_RV.device
    vocab = scaled_RV.shape[-1]
    sorted_RV, order_RV = scaled_RV.sort(-1, descending=True)
    probabilities_RV = sorted_RV.softmax(-1)
    min_p_R1 = torch.tensor([[o.min_p] for o in options], dtype=torch.float32, device=device)
    keep_RV = probabilities_RV >= min_p_R1 * probabilities_RV[:, :1]
    top_k_R1 = torch.tensor([[o.top_k or vocab] for o in options], device=device)
    keep_RV &= torch.arange(vocab, device=device) < top_k_R1
    kept_RV = sorted_RV.masked_fill(~keep_RV, -torch.inf).softmax(-1)
    top_p_R1 = torch.tensor([[o.top_p] for o in options], dtype=torch.float32, device=device)
    # A token stays while those before it have not reached top-p; with top-p 1 rounding must not rule any out.
    keep_RV &= (kept_RV.cumsum(-1) - kept_RV < top_p_R1) | (top_p_R1 >= 1.0)
    keep_RV[:, 0] = True
    sorted_RV = sorted_RV.masked_fill(~keep_RV, -torch.inf)
    return torch.empty_like(sorted_RV).scatter_(-1, order_RV, sorted_RV)


def _sampled(token_id: int, logits_V: torch.Tensor, wanted: Logprobs) -> SampledToken:
    if not wanted.enabled:
        return SampledToken(token_id)
    logprobs_V = logits_V.log_softmax(-1)
    alternatives: tuple[TokenAlternative, ...] = ()
    if wanted.num_alternatives:
        values, indices = logprobs_V.topk(wanted.num_alternatives)
        alternatives = tuple(TokenAlternative(i, v) for i, v in zip(indices.tolist(), values.tolist(), strict=True))
    return SampledToken(token_id, float(logprobs_V[token_id]), alternatives)


def _mix(seed: int, position: int) -> int:
    """A seed for one position; SplitMix64's finaliser (Steele et al. 2014), so that neighbours are unrelated."""
    z = (seed + (position + 1) * _GOLDEN) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (z ^ (z >> 31)) & ((1 << 63) - 1)
