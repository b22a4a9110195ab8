"""What torch documents of paged FlashAttention, computed row by row, with the checks that its CUDA kernels make."""

import torch


def flash_attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
    num_splits: int,
) -> tuple[torch.Tensor]:
    """Where a row has no keys its tokens get zeros; tokens of no row get NaN, since the kernels write nothing there."""
    num_rows = cu_seq_q.numel() - 1
    num_pages, page_tokens, num_kv_heads, head_size = key.shape
    assert page_tokens % 256 == 0
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert {x.dtype for x in (cu_seq_q, cu_seq_k, seqused_k, block_table)} == {torch.int32}
    assert (cu_seq_k.numel(), seqused_k.numel(), block_table.shape[0]) == (num_rows + 1, num_rows, num_rows)
    assert block_table.stride(-1) == query.stride(-1) == key.stride(-1) == 1
    assert query.shape[1] % num_kv_heads == 0
    assert head_size % 8 == 0
    assert dropout_p == 0.0
    assert not is_causal, "windows say it"
    if max_q == 1:
        # The query heads of one key head stand as its queries, and where each row begins is not read.
        assert query.shape[0] == num_rows, "else the kernels expect a token for every row"
        assert (window_size_left, window_size_right) == (-1, -1)
        assert cu_seq_q.tolist() == list(range(num_rows + 1))
        assert num_splits >= 1
    else:
        assert num_splits == 1
    out = torch.full_like(query, torch.nan)
    for row in range(num_rows):
        begin, end, used = int(cu_seq_q[row]), int(cu_seq_q[row + 1]), int(seqused_k[row])
        assert end - begin <= max_q
        assert used <= max_k
        pages = block_table[row, : -(-used // page_tokens)].long()
        assert (pages < num_pages).all()
        k, v = (
            x[pages].flatten(0, 1)[:used].repeat_interleave(query.shape[1] // num_kv_heads, 1) for x in (key, value)
        )
        positions = torch.arange(end - begin)[:, None] + used - (end - begin)
        distance = positions - torch.arange(used)
        visible = torch.ones_like(distance, dtype=torch.bool)
        if window_size_right >= 0:
            visible &= distance >= -window_size_right
        if window_size_left >= 0:
            visible &= distance <= window_size_left
        scores = torch.einsum("thd,lhd->htl", query[begin:end].float(), k.float()) * scale
        shares = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out[begin:end] = torch.einsum("htl,lhd->thd", shares, v.float()).to(out.dtype)
    return (out,)
