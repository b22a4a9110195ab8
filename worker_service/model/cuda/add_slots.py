"""Additions of adapters to the linears of one group, as one operator of two launches, for any slots and ranks.

Shapes: T tokens, I in_features, G linears of the group, N outputs of all of them side by side, S slots, K ranks of one
slot, C = S * K columns, U tiles of tokens, P places of all tiles' lists, Z splits of the features.
"""

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from worker_service.model.cuda.active_columns import FEW_TILE, PIECE, tile_tokens

MAX_LINEARS = 3
"""Linears of a group: queries, keys and values."""
SPLIT_FEATURES = 512
"""Features that one sum of a decoding step is made of; more of them would leave most of the device idle."""
MOST_SPLITS = 16
"""Partial sums that are read back for each output."""
BLOCK_C = 32
"""Places of a list that a program takes at a time."""
MOST_LISTERS = 8
"""Programs that share one tile's list; each takes every so manyth piece of it."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def can_serve(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernels run there: Triton is beside torch's CUDA builds, and they take these element types."""
    return device.type == "cuda" and dtype in DTYPES and importlib.util.find_spec("triton") is not None


def split_features(num_tokens: int, in_features: int) -> int:
    """Features of one split, by the bucket's tokens and the layer's shape alone, so that sums are made in one order."""
    if tile_tokens(num_tokens) != FEW_TILE:
        return -(-in_features // SPLIT_FEATURES) * SPLIT_FEATURES
    splits = min(-(-in_features // SPLIT_FEATURES), MOST_SPLITS)
    return -(-in_features // (splits * SPLIT_FEATURES)) * SPLIT_FEATURES


def add_slots(
    x_TI: torch.Tensor,
    y_TN: torch.Tensor,
    a_GCI: torch.Tensor,
    b_CN: torch.Tensor,
    scales_GS: torch.Tensor,
    ones_GSK: torch.Tensor,
    gates_TS: torch.Tensor,
    begins_U1: torch.Tensor,
    columns_P: torch.Tensor,
    ends: Sequence[int],
) -> None:
    """`y += B_all · select(gate, gate · scale · (A_all x + one))` for each linear, over the columns that are listed.

    `ends` are where each linear's outputs end in N. B's of the linears lie behind each other, each `[C, its outputs]`.
    Tiles without columns are left as they are.
    """
    kernels = _kernels()
    num_tokens, in_features = x_TI.shape
    num_linears, num_slots, slot_rank = ones_GSK.shape
    assert num_linears == len(ends) <= MAX_LINEARS
    assert all(tensor.is_contiguous() for tensor in (y_TN, b_CN, a_GCI))
    assert x_TI.stride(1) == gates_TS.stride(1) == scales_GS.stride(1) == 1
    tile = tile_tokens(num_tokens)
    is_few = tile == FEW_TILE
    split = split_features(num_tokens, in_features)
    num_tiles, num_splits = -(-num_tokens // tile), -(-in_features // split)
    num_columns, num_places = num_slots * slot_rank, columns_P.shape[0]
    widen = kernels.IS_INTERPRETED and x_TI.dtype == torch.bfloat16
    h = torch.empty((num_splits, num_linears, num_places, tile), dtype=torch.float32, device=x_TI.device)
    most_blocks = -(-num_slots * -(-slot_rank // PIECE) * PIECE // BLOCK_C)
    kernels.shrink[(num_tiles, min(most_blocks, MOST_LISTERS), num_splits * num_linears)](
        x_TI, a_GCI, begins_U1, columns_P, h,
        num_tokens, in_features, x_TI.stride(0), num_columns, num_places,
        NUM_LINEARS=num_linears, SPLIT_FEATURES=split, TILE=tile, WIDEN=widen, **shrink_options(is_few, x_TI.dtype),
    )  # fmt: skip
    options = expand_options()
    starts = [0, *ends[:-1]]
    num_blocks = sum(-(-(end - start) // options["BLOCK_N"]) for start, end in zip(starts, ends, strict=True))
    kernels.expand[(num_tiles, num_blocks)](
        h, b_CN, y_TN, gates_TS, scales_GS, ones_GSK, begins_U1, columns_P,
        num_tokens, y_TN.shape[1], num_columns, gates_TS.stride(0), scales_GS.stride(0), ones_GSK.stride(0), num_places,
        *ends, *[0] * (MAX_LINEARS - num_linears),
        NUM_LINEARS=num_linears, NUM_SPLITS=num_splits, SLOT_RANK=slot_rank, TILE=tile, WIDEN=widen, **options,
    )  # fmt: skip


def shrink_options(is_few: bool, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes of the first kernel: many small loads in flight for few tokens, and reuse of both sides for many."""
    if is_few:
        return {"BLOCK_C": BLOCK_C, "BLOCK_I": 128, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_C": BLOCK_C, "BLOCK_I": 32 if dtype == torch.float32 else 64, "num_warps": 4, "num_stages": 3}


def expand_options() -> dict[str, int]:
    """Block sizes of the second kernel. Larger ones spill registers on some of the processors that compile them."""
    return {"BLOCK_C": BLOCK_C, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}


@functools.cache
def _kernels() -> Any:
    """The kernels' module, which needs Triton."""
    return importlib.import_module("worker_service.model.cuda.slot_kernels")


# Defined by hand, as attention is (attention.py); the sum is made in place, so nothing more is read than has to be.
_LIBRARY = torch.library.Library("hotslot_cuda", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "add_slots(Tensor x, Tensor(a!) y, Tensor a, Tensor b, Tensor scales, Tensor ones, Tensor gates, Tensor begins, "
    "Tensor columns, int[] ends) -> ()"
)
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("add_slots", add_slots, _device)  # type: ignore[no-untyped-call]
torch.library.register_fake("hotslot_cuda::add_slots", lambda *_: None, lib=_LIBRARY)
