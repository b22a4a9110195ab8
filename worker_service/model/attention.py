"""Attention over a paged KV cache, as one operator that the compiler does not look into.

Sequences of any length share a step; their lengths are data, not shapes, so they compile nothing.
Shapes: T tokens, H query heads, G key/value heads, D head size, N cache positions (blocks * block_tokens), R segments.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from worker_service.model import varlen_attention
from worker_service.model.cpu import library
from worker_service.model.masked_attention import attend_masked
from worker_service.model.step_state import StepState
from worker_service.model.varlen_attention import attend_varlen

ATTENTION_NAME = "hotslot"


def attend(
    q_THD: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    k_cache_NGD: torch.Tensor,
    v_cache_NGD: torch.Tensor,
    cache_positions_T: torch.Tensor,
    segments_R4: torch.Tensor,
    block_tables_RB: torch.Tensor,
    block_tokens: int,
    scale: float,
    window: int,
    kernel_tokens: int,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Write the step's keys and values to the cache and attend, segment by segment; returns `[T, H, D]`.

    `window` is how many keys a token sees, itself included; 0 means all before it. `softcap` bounds scores, as
    `softcap * tanh(score / softcap)`; 0 leaves them alone. Padding tokens get zeros.
    Segments of up to `kernel_tokens` tokens are computed by the CPU kernels, which read through the block tables.
    """
    if kernel_tokens:
        out_THD = torch.empty_like(q_THD)
        all_done = torch.ops.hotslot_cpu.attend(
            q_THD, k_TGD, v_TGD, k_cache_NGD, v_cache_NGD, cache_positions_T,
            segments_R4, block_tables_RB, block_tokens, scale, window, softcap, kernel_tokens, out_THD,
        )  # fmt: skip
        if all_done:
            return out_THD
    else:
        k_cache_NGD.index_copy_(0, cache_positions_T, k_TGD)
        v_cache_NGD.index_copy_(0, cache_positions_T, v_TGD)
        out_THD = torch.zeros_like(q_THD)
    for row, (first, count, num_keys, start) in enumerate(segments_R4.tolist()):
        if count == 0:
            break
        if count <= kernel_tokens:
            continue
        if start >= 0:
            k_LGD, v_LGD = k_cache_NGD[start : start + num_keys], v_cache_NGD[start : start + num_keys]
        else:
            k_LGD = _gather(k_cache_NGD, block_tables_RB[row], block_tokens, num_keys)
            v_LGD = _gather(v_cache_NGD, block_tables_RB[row], block_tokens, num_keys)
        q_SHD = q_THD[first : first + count]
        if softcap:
            out_THD[first : first + count] = _attend_capped(q_SHD, k_LGD, v_LGD, scale, window, softcap)
        else:
            out_THD[first : first + count] = _attend_one(q_SHD, k_LGD, v_LGD, scale, window)
    return out_THD


def _like_queries(q_THD: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(q_THD)


# Defined by hand: what `torch.library.custom_op` wraps around an operator, for autograd and against aliasing, costs
# more at every layer than the attention of a decoding step.
_LIBRARY = torch.library.Library("hotslot", "DEF")  # type: ignore[no-untyped-call]
_CACHED = "Tensor q, Tensor k_cache, Tensor v_cache"
_ARGUMENTS = {
    attend: "Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor cache_positions, "
    "Tensor segments, Tensor block_tables, int block_tokens, float scale, int window, int kernel_tokens, "
    "float softcap=0.0",
    attend_masked: f"{_CACHED}, Tensor cu_tokens, Tensor num_keys, Tensor block_tables, int block_tokens, "
    "float scale, int window, float softcap",
    attend_varlen: f"{_CACHED}, Tensor cu_tokens, Tensor cu_keys, Tensor num_keys, Tensor block_tables, "
    "int block_tokens, float scale, int window, int decode_splits",
}
for _function, _arguments in _ARGUMENTS.items():
    _LIBRARY.define(f"{_function.__name__}({_arguments}) -> Tensor")  # type: ignore[no-untyped-call]
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_function.__name__, _function, _device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"hotslot::{_function.__name__}", _like_queries, lib=_LIBRARY)


def _gather(cache_NGD: torch.Tensor, blocks_B: torch.Tensor, block_tokens: int, num_keys: int) -> torch.Tensor:
    """The first `num_keys` positions of scattered blocks, copied side by side."""
    used_B = blocks_B[: -(-num_keys // block_tokens)]
    paged = cache_NGD.view(-1, block_tokens, *cache_NGD.shape[1:])
    return paged.index_select(0, used_B).flatten(0, 1)[:num_keys]


def _attend_one(
    q_THD: torch.Tensor, k_LGD: torch.Tensor, v_LGD: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """One segment: its T tokens are the last T of the L that have keys."""
    num_tokens, num_heads, head_size = q_THD.shape
    num_keys, num_kv_heads, _ = k_LGD.shape
    if num_tokens == 1:
        if window and num_keys > window:
            k_LGD, v_LGD = k_LGD[-window:], v_LGD[-window:]
        # The query heads of one key head stand as its query positions: one product for each key head.
        q = q_THD.view(1, num_kv_heads, num_heads // num_kv_heads, head_size)
        k, v = k_LGD.transpose(0, 1)[None], v_LGD.transpose(0, 1)[None]
        return functional.scaled_dot_product_attention(q, k, v, scale=scale).reshape(1, num_heads, head_size)
    mask_TL = _mask(num_tokens, num_keys, window, q_THD.device)
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_LGD, v_LGD))
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask_TL, scale=scale, enable_gqa=num_heads != num_kv_heads
    )
    return out[0].transpose(0, 1)


def _attend_capped(
    q_THD: torch.Tensor, k_LGD: torch.Tensor, v_LGD: torch.Tensor, scale: float, window: int, softcap: float
) -> torch.Tensor:
    """The same with bounded scores, which no library function computes on CPU (Gemma 2, section 2)."""
    num_tokens, num_heads, head_size = q_THD.shape
    num_keys, num_kv_heads, _ = k_LGD.shape
    q_GRTD = q_THD.view(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_size).permute(1, 2, 0, 3)
    scores_GRTL = (q_GRTD @ k_LGD.permute(1, 2, 0)[:, None]).float() * scale
    scores_GRTL = torch.tanh(scores_GRTL / softcap) * softcap
    scores_GRTL.masked_fill_(~_mask(num_tokens, num_keys, window, q_THD.device), -torch.inf)
    out_GRTD = scores_GRTL.softmax(-1).to(v_LGD.dtype) @ v_LGD.transpose(0, 1)[:, None]
    return out_GRTD.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, head_size)


def _mask(num_tokens: int, num_keys: int, window: int, device: torch.device) -> torch.Tensor:
    """Mask of the keys that each of the last T of L tokens sees, `[T, L]`."""
    positions_T1 = torch.arange(num_keys - num_tokens, num_keys, device=device)[:, None]
    keys_L = torch.arange(num_keys, device=device)
    mask_TL = keys_L <= positions_T1
    if window:
        mask_TL &= keys_L > positions_T1 - window
    return mask_TL


class KvCache(nn.Module):
    """Keys and values of one layer, `[N, G, D]` each; the last block is where padding writes."""

    def __init__(
        self,
        num_positions: int,
        num_kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_zeroed: bool = True,
    ) -> None:
        """Without `is_zeroed` the caller does that."""
        super().__init__()
        make = torch.zeros if is_zeroed else torch.empty
        shape = (num_positions, num_kv_heads, head_size)
        self.k_NGD: torch.Tensor
        self.v_NGD: torch.Tensor
        self.register_buffer("k_NGD", make(shape, dtype=dtype, device=device), persistent=False)
        self.register_buffer("v_NGD", make(shape, dtype=dtype, device=device), persistent=False)


class PagedAttention(nn.Module):
    """Cache of one attention module, and the step that says which row reads which of its blocks."""

    def __init__(self, cache: KvCache, step: StepState, block_tokens: int) -> None:
        super().__init__()
        self.cache = cache
        self.step = step
        self.block_tokens = block_tokens
        fits = step.with_kernels and cache.k_NGD.shape[-1] % library.HEAD_SIZE_MULTIPLE == 0
        self.fits_flash = step.with_flash and varlen_attention.fits(cache.k_NGD.shape[-1])
        self.kernel_tokens = library.attention_tokens(cache.k_NGD.dtype) if fits else 0

    def forward(
        self,
        q_THD: torch.Tensor,
        k_TGD: torch.Tensor,
        v_TGD: torch.Tensor,
        scale: float,
        window: int,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        """Attend for the step's tokens; `[T, H, D]`. The kernels on CUDA do not bound scores."""
        rows, tables_RB, num_tokens = self.step.varlen, self.step.block_tables_RB, q_THD.shape[0]
        positions_T, q_THD = self.step.cache_positions_T[:num_tokens], q_THD.contiguous()
        caches = (self.cache.k_NGD, self.cache.v_NGD)
        out: torch.Tensor
        if rows is None:
            out = torch.ops.hotslot.attend(
                q_THD,
                k_TGD,
                v_TGD,
                *caches,
                positions_T,
                self.step.segments_R4,
                tables_RB,
                self.block_tokens,
                scale,
                window,
                self.kernel_tokens,
                softcap,
            )
            return out
        # In sight of the compiler, which writes both in the kernel that rotates the keys.
        for cache_NGD, new_TGD in zip(caches, (k_TGD, v_TGD), strict=True):
            cache_NGD.index_copy_(0, positions_T, new_TGD)
        read = (q_THD, *caches)
        if softcap or not self.fits_flash:
            out = torch.ops.hotslot.attend_masked(
                *read, rows.cu_tokens_R1, rows.num_keys_R, tables_RB, self.block_tokens, scale, window, softcap
            )
        elif self.step.is_decode and not window:
            begins = (rows.counted_R1[: num_tokens + 1], rows.cu_keys_R1[: num_tokens + 1])
            keys_T, tables_TB = rows.num_keys_R[:num_tokens], tables_RB[:num_tokens]
            splits = varlen_attention.decode_splits(num_tokens, k_TGD.shape[1])
            out = torch.ops.hotslot.attend_varlen(
                *read, *begins, keys_T, tables_TB, self.block_tokens, scale, 0, splits
            )
        else:
            begins = (rows.cu_tokens_R1, rows.cu_keys_R1)
            out = torch.ops.hotslot.attend_varlen(
                *read, *begins, rows.num_keys_R, tables_RB, self.block_tokens, scale, window, 0
            )
        return out


def attention_interface(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: `[1, heads, T, D]` in, `[1, T, H, D]` out, with the tokens of all rows in T.

    Other arguments of architectures were looked at when their attention modules were found (attention_sites.py).
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q_THD, k_TGD, v_TGD = (x[0].transpose(0, 1) for x in (query, key, value))
    paged = module.hotslot_attention
    assert isinstance(paged, PagedAttention), "every attention module of the model was given its cache"
    out_THD = paged(q_THD, k_TGD, v_TGD, scale, sliding_window or 0, softcap or 0.0)
    return out_THD[None], None
