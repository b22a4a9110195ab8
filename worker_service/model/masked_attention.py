"""Attention over the paged cache with operators that every device has, and nothing is read by the host.

Where no kernel fits (fp32 on CUDA, bounded scores, odd head sizes) all rows are computed at once, by pieces of the
longest sequence that there may be, so a step launches the same whatever its rows are: it can be captured.
Shapes: T tokens, H query heads, G key/value heads, Q query heads of one key head, D head size, N cache positions, R
rows, B blocks of one row, L keys of one piece.
"""

import torch

MOST_ELEMENTS = 1 << 23
"""Elements of the keys that are gathered at a time."""


def attend_masked(
    q_THD: torch.Tensor,
    k_cache_NGD: torch.Tensor,
    v_cache_NGD: torch.Tensor,
    cu_tokens_R1: torch.Tensor,
    num_keys_R: torch.Tensor,
    block_tables_RB: torch.Tensor,
    block_tokens: int,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """As `hotslot::attend` once the caches are written; rows as `VarlenRows` has them.

    The sums of pieces are joined as in Milakov et al. 2018.
    """
    num_tokens, num_heads, head_size = q_THD.shape
    num_kv_heads, num_rows = k_cache_NGD.shape[1], num_keys_R.shape[0]
    tokens_T = torch.arange(num_tokens, dtype=torch.int32, device=q_THD.device)
    rows_T = torch.searchsorted(cu_tokens_R1[1:], tokens_T, right=True).clamp(max=num_rows - 1)
    last_T = num_keys_R[rows_T] - (cu_tokens_R1[rows_T + 1] - tokens_T)
    tables_TB = block_tables_RB[rows_T]
    q_TGQD = q_THD.reshape(num_tokens, num_kv_heads, -1, head_size).float() * scale
    paged = (-1, block_tokens, num_kv_heads, head_size)
    k_pages, v_pages = k_cache_NGD.view(paged), v_cache_NGD.view(paged)
    shape = q_TGQD.shape[:-1]
    highest_TGQ = torch.full(shape, -torch.inf, dtype=torch.float32, device=q_THD.device)
    weight_TGQ = torch.zeros_like(highest_TGQ)
    sum_TGQD = torch.zeros_like(q_TGQD)
    blocks_each = max(1, MOST_ELEMENTS // (num_tokens * num_kv_heads * head_size * block_tokens))
    for first in range(0, block_tables_RB.shape[1], blocks_each):
        blocks_T = tables_TB[:, first : first + blocks_each]
        k_TLGD, v_TLGD = (pages[blocks_T].flatten(1, 2).float() for pages in (k_pages, v_pages))
        keys_L = first * block_tokens + torch.arange(k_TLGD.shape[1], device=q_THD.device)
        seen_TL = keys_L <= last_T[:, None]
        if window:
            seen_TL &= keys_L > last_T[:, None] - window
        scores_TGQL = torch.einsum("tgqd,tlgd->tgql", q_TGQD, k_TLGD)
        if softcap:
            scores_TGQL = torch.tanh(scores_TGQL / softcap) * softcap
        scores_TGQL = scores_TGQL.masked_fill(~seen_TL[:, None, None], -torch.inf)
        before_TGQ, highest_TGQ = highest_TGQ, torch.maximum(highest_TGQ, scores_TGQL.amax(-1))
        # Where no key was seen yet the highest score is -inf, from which nothing can be taken.
        base_TGQ = highest_TGQ.clamp(min=torch.finfo(torch.float32).min)
        shares_TGQL = (scores_TGQL - base_TGQ[..., None]).exp()
        kept_TGQ = (before_TGQ - base_TGQ).exp()
        weight_TGQ = weight_TGQ * kept_TGQ + shares_TGQL.sum(-1)
        # A product would let a value of another sequence through, if it is not finite.
        v_TLGD = torch.where(seen_TL[:, :, None, None], v_TLGD, 0.0)
        sum_TGQD = sum_TGQD * kept_TGQ[..., None] + torch.einsum("tgql,tlgd->tgqd", shares_TGQL, v_TLGD)
    out_TGQD = torch.where(weight_TGQ[..., None] > 0, sum_TGQD / weight_TGQ[..., None], 0.0)
    return out_TGQD.to(q_THD.dtype).reshape(num_tokens, num_heads, head_size)
