"""Choosing the next token of each row from its logits.

A row's draw is a function of its logits, its seed and its position: noise comes from a counter hash (counter_hash.py),
so it is the same in any batch, in any order and on any device.

Shapes: R rows, V vocabulary. All arithmetic is fp32.
"""

from collections.abc import Sequence

import numpy as np
import torch

from hotslot.contract.generation import Sampling
from worker_service.engine.messages import SampledToken, Segment
from worker_service.model.counter_hash import exponentials
from worker_service.model.cpu import library
from worker_service.model.penalties import adjusted
from worker_service.model.scoring import scored

_MASK64 = (1 << 64) - 1


def sample(logits_RV: torch.Tensor, segments: Sequence[Segment]) -> list[SampledToken | None]:
    """One token for each row, or None where its logits are not finite; row r belongs to `segments[r]`.

    Each segment's `sampling` is set. A row's draws depend on its own logits, seed and position alone, never on the
    rows beside it. A few -inf are how a model itself rules tokens out; a NaN anywhere, +inf or nothing else are none.
    """
    logits_RV = adjusted(logits_RV, segments)
    token_ids_R = logits_RV.argmax(-1)
    # To argmax a NaN is the largest, so what it found tells of all logits of its row.
    is_finite = logits_RV.gather(-1, token_ids_R[:, None])[:, 0].isfinite().tolist()
    drawn = [row for row, each in enumerate(segments) if is_finite[row] and not _options(each).is_greedy]
    if len(drawn) == len(segments):
        token_ids_R = _draw(logits_RV, segments)
    elif drawn:
        token_ids_R[drawn] = _draw(logits_RV[drawn], [segments[row] for row in drawn])
    token_ids = token_ids_R.tolist()
    tokens: list[SampledToken | None] = [SampledToken(token_id) for token_id in token_ids]
    wanting = [row for row, segment in enumerate(segments) if segment.logprobs.enabled]
    if wanting:
        some_RV = logits_RV if len(wanting) == len(segments) else logits_RV[wanting]
        counts = [segments[row].logprobs.num_alternatives for row in wanting]
        for row, token in zip(wanting, scored(some_RV, [token_ids[row] for row in wanting], counts), strict=True):
            tokens[row] = token
    return [token if finite else None for token, finite in zip(tokens, is_finite, strict=True)]


def _options(segment: Segment) -> Sampling:
    assert segment.sampling is not None, "only rows that want a token are sampled"
    return segment.sampling


def _draw(logits_RV: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """A token for each row, by the exponential race: the largest of probability / noise wins."""
    options = [_options(segment) for segment in segments]
    counts = [
        ((option.seed or 0) & _MASK64, segment.start + len(segment.token_ids), option.top_k)
        for option, segment in zip(options, segments, strict=True)
    ]
    counts_R3 = torch.from_numpy(np.array(counts, np.uint64).view(np.int64)).to(logits_RV.device)
    factors = [(option.temperature, option.top_p, option.min_p) for option in options]
    factors_R3 = torch.tensor(factors, dtype=torch.float32, device=logits_RV.device)
    if logits_RV.device.type == "cpu" and library.are_loaded():
        return torch.ops.hotslot_cpu.draw(logits_RV, counts_R3, factors_R3)  # type: ignore[no-any-return]
    return draw(logits_RV, counts_R3, factors_R3)


def draw(logits_RV: torch.Tensor, counts_R3: torch.Tensor, factors_R3: torch.Tensor) -> torch.Tensor:
    """A token for each row, as a program of tensors that needs no value on the host.

    `counts_R3` are seed, position and top-k (int64), `factors_R3` temperature, top-p and min-p (fp32).
    """
    scaled_RV = logits_RV / factors_R3[:, :1]
    weights_RV = (scaled_RV - scaled_RV.amax(-1, keepdim=True)).exp()
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
    kept_RV = weights_RV * keep_RV
    before_RV = kept_RV.cumsum(-1) - kept_RV
    # A token stays while those before it have not reached top-p; with top-p 1 rounding must not rule any out.
    keep_RV &= (before_RV < top_p_R1 * kept_RV.sum(-1, keepdim=True)) | (top_p_R1 >= 1.0)
    keep_RV[:, 0] = True
    return torch.zeros_like(weights_RV).scatter_(-1, order_RV, weights_RV * keep_RV)
