"""Choosing the next token of each row from its logits.

A row's draw is a function of its logits, its seed and its position: noise comes from a counter hash (counter_hash.py),
so it is the same in any batch, in any order and on any device.

Shapes: R rows, V vocabulary. All arithmetic is fp32.
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch

from hotslot.contract.generation import Sampling
from worker_service.engine.messages import SampledToken, Segment
from worker_service.model.counter_hash import exponentials
from worker_service.model.cpu import library
from worker_service.model.penalties import adjusted
from worker_service.model.scoring import scored

_MASK64 = (1 << 64) - 1
NOT_FINITE = -1
"""In the place of a token, for logits that are not finite."""
WHOLE = 2.0**44
"""Largest weight as a whole number; 2^18 of them still fit into 64 bits."""


class Sampler(StrEnum):
    """Program that chooses tokens, cheapest first; a dearer one serves the rows of the cheaper ones, too."""

    GREEDY = "greedy"
    DRAWN = "drawn"
    TRUNCATED = "truncated"


EXAMPLES = {
    Sampler.GREEDY: Sampling(),
    Sampler.DRAWN: Sampling(temperature=0.8, seed=11),
    Sampler.TRUNCATED: Sampling(temperature=1.1, top_k=40, top_p=0.9, min_p=0.01, seed=2**63 + 5),
}
"""Options that need each program."""


def sampler_of(segment: Segment) -> Sampler:
    """The cheapest program that chooses a segment's token."""
    options = options_of(segment)
    if options.is_greedy:
        return Sampler.GREEDY
    truncates = options.top_k > 0 or options.top_p < 1.0 or options.min_p > 0.0
    return Sampler.TRUNCATED if truncates else Sampler.DRAWN


def sample(logits_RV: torch.Tensor, segments: Sequence[Segment]) -> list[SampledToken | None]:
    """One token for each row, or None where its logits are not finite; row r belongs to `segments[r]`.

    Each segment's `sampling` is set. A row's draws depend on its own logits, seed and position alone, never on the
    rows beside it. A few -inf are how a model itself rules tokens out; a NaN anywhere, +inf or nothing else are none.
    """
    logits_RV = adjusted(logits_RV, segments)
    token_ids = _greedy(logits_RV)
    drawn = [
        row for row, each in enumerate(segments) if token_ids[row] != NOT_FINITE and not options_of(each).is_greedy
    ]
    if drawn:
        found = _draw(_rows(logits_RV, drawn), [segments[row] for row in drawn]).tolist()
        for row, token_id in zip(drawn, found, strict=True):
            token_ids[row] = token_id
    tokens = [SampledToken(token_id) if token_id != NOT_FINITE else None for token_id in token_ids]
    wanting = [row for row, each in enumerate(segments) if tokens[row] is not None and each.logprobs.enabled]
    if wanting:
        counts = [segments[row].logprobs.num_alternatives for row in wanting]
        found = scored(_rows(logits_RV, wanting), [token_ids[row] for row in wanting], counts)
        for row, token in zip(wanting, found, strict=True):
            tokens[row] = token
    return tokens


def _rows(logits_RV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows, in fp32."""
    return (logits_RV if len(rows) == len(logits_RV) else logits_RV[rows]).float()


def _greedy(logits_RV: torch.Tensor) -> list[int]:
    """The token with the highest logit of each row, or NOT_FINITE."""
    is_known = logits_RV.dtype in (torch.bfloat16, torch.float32) and logits_RV.stride(1) == 1
    if is_known and logits_RV.device.type == "cpu" and library.are_loaded():
        return torch.ops.hotslot_cpu.greedy(logits_RV).tolist()  # type: ignore[no-any-return]
    token_ids_R = logits_RV.argmax(-1)
    # To argmax a NaN is the largest, so what it found tells of all logits of its row.
    is_finite_R = logits_RV.gather(-1, token_ids_R[:, None])[:, 0].isfinite()
    return torch.where(is_finite_R, token_ids_R, NOT_FINITE).tolist()


def options_of(segment: Segment) -> Sampling:
    """Options of a segment that wants a token."""
    assert segment.sampling is not None, "only rows that want a token are sampled"
    return segment.sampling


def draw_counts(segment: Segment) -> tuple[int, int, int]:
    """Seed, as 64 bits without a sign, position and top-k of a segment's draw."""
    options = options_of(segment)
    return (options.seed or 0) & _MASK64, segment.start + len(segment.token_ids), options.top_k


def draw_factors(segment: Segment) -> tuple[float, float, float]:
    """Temperature, top-p and min-p of a segment's draw."""
    options = options_of(segment)
    return options.temperature, options.top_p, options.min_p


def _draw(logits_RV: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """A token for each row, by the exponential race: the largest of probability / noise wins."""
    counts = np.array([draw_counts(segment) for segment in segments], np.uint64)
    counts_R3 = torch.from_numpy(counts.view(np.int64)).to(logits_RV.device)
    factors = [draw_factors(segment) for segment in segments]
    factors_R3 = torch.tensor(factors, dtype=torch.float32, device=logits_RV.device)
    if logits_RV.device.type == "cpu" and library.are_loaded():
        return torch.ops.hotslot_cpu.draw(logits_RV, counts_R3, factors_R3)  # type: ignore[no-any-return]
    return draw(logits_RV, counts_R3, factors_R3)


def draw(
    logits_RV: torch.Tensor, counts_R3: torch.Tensor, factors_R3: torch.Tensor, *, truncates: bool = True
) -> torch.Tensor:
    """A token for each row, as a program of tensors that needs no value on the host.

    `counts_R3` are seed, position and top-k (int64), `factors_R3` temperature, top-p and min-p (fp32). Without
    `truncates` no row may have one of the last three, and nothing is sorted; what is drawn is the same.
    """
    scaled_RV = logits_RV / factors_R3[:, :1]
    weights_RV = (scaled_RV - scaled_RV.amax(-1, keepdim=True)).exp()
    if truncates:
        weights_RV = _truncated(scaled_RV, weights_RV, counts_R3[:, 2:], factors_R3[:, 1:2], factors_R3[:, 2:])
    return (weights_RV / exponentials(counts_R3[:, 0], counts_R3[:, 1], logits_RV.shape[1])).argmax(-1)


def _truncated(
    scaled_RV: torch.Tensor,
    weights_RV: torch.Tensor,
    top_k_R1: torch.Tensor,
    top_p_R1: torch.Tensor,
    min_p_R1: torch.Tensor,
) -> torch.Tensor:
    """Weights of the tokens that min-p, top-k and top-p, in this order, leave; the most likely one always stays."""
    # Stable, so that of equal logits the first token counts as the more likely one, on every device.
    order_RV = scaled_RV.sort(stable=True, dim=-1, descending=True).indices
    weights_RV = weights_RV.gather(-1, order_RV)
    ranks_V = torch.arange(weights_RV.shape[-1], device=weights_RV.device)
    keep_RV = (weights_RV >= min_p_R1) & ((ranks_V < top_k_R1) | (top_k_R1 == 0))
    # Whole numbers have one sum in any order: a device's depends on how many rows there are otherwise.
    kept_RV = (weights_RV.double() * WHOLE).round().to(torch.int64) * keep_RV
    before_RV = kept_RV.cumsum(-1) - kept_RV
    # A token stays while those before it have not reached top-p; with top-p 1 rounding must not rule any out.
    enough_R1 = top_p_R1.double() * kept_RV.sum(-1, keepdim=True).double()
    keep_RV &= (before_RV.double() < enough_R1) | (top_p_R1 >= 1.0)
    keep_RV[:, :1].fill_(True)
    return torch.zeros_like(weights_RV).scatter_(-1, order_RV, weights_RV * keep_RV)
