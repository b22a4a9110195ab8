"""Attention on CUDA with torch's own paged kernels: one call a layer for all rows, and nothing is read by the host.

Shapes: T tokens, H query heads, G key/value heads, D head size, N cache positions (blocks * block_tokens), R rows, the
last of which is the padding's, B blocks of one row.
"""

from dataclasses import dataclass

import torch

from hotslot.device_sizes import CUDA_BLOCK_TOKENS
from hotslot.errors import FieldViolation, InvalidRequestError

BLOCK_TOKENS = CUDA_BLOCK_TOKENS
"""FlashAttention 2, which torch uses for this, takes pages of a multiple of so many tokens."""
MAX_HEAD_SIZE = 256
HEAD_SIZE_MULTIPLE = 8
DTYPES = (torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)
MOST_SPLITS = 16
BUSY_BLOCKS = 256
"""Blocks of threads that keep a large GPU busy: 132 processors, and one more block for most of them."""
_NEEDED = {"block_table", "seqused_k", "window_size_left", "window_size_right", "num_splits"}


@dataclass(eq=False)
class VarlenRows:
    """Tokens and keys of each row, int32 on the device. No tensor in here is ever replaced."""

    cu_tokens_R1: torch.Tensor
    """Tokens of all rows before this one; the last element is the whole bucket."""
    cu_keys_R1: torch.Tensor
    num_keys_R: torch.Tensor
    """0 in rows without a sequence, whose tokens therefore get zeros."""
    counted_R1: torch.Tensor
    """0, 1, 2 and so on: `cu_tokens_R1` of a step with one token in each row, padding included. Never written."""

    @classmethod
    def allocate(cls, num_rows: int, device: torch.device) -> "VarlenRows":
        """All tensors, once."""

        def zeros(size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        counted_R1 = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        return cls(zeros(num_rows + 1), zeros(num_rows + 1), zeros(num_rows), counted_R1)

    def describe(self, rows: list[tuple[int, int, int, int]], num_tokens: int) -> None:
        """Take in a step's segments (`StepState.segments_R4`); the tokens behind them, to `num_tokens`, are padding."""
        num_rows = self.num_keys_R.shape[0]
        assert len(rows) < num_rows, "one row is left for padding"
        total = sum(count for _, count, _, _ in rows)
        ends = [first + count for first, count, _, _ in rows]
        cu_tokens = [0, *ends, *[total] * (num_rows - 1 - len(rows)), num_tokens]
        num_keys = [keys for _, _, keys, _ in rows] + [0] * (num_rows - len(rows))
        num_keys_R = torch.tensor(num_keys, dtype=torch.int32)
        self.cu_tokens_R1.copy_(torch.tensor(cu_tokens, dtype=torch.int32))
        self.num_keys_R.copy_(num_keys_R)
        self.cu_keys_R1[1:] = num_keys_R.cumsum(0, dtype=torch.int32)


def can_serve(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether this torch has the kernels, for this device and element type."""
    if device.type != "cuda" or dtype not in DTYPES or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return False
    return has_paging()


def has_paging() -> bool:
    """Tell whether torch's operator takes all that we hand to it: pages came with 2.11, before it is called."""
    schema = torch.ops.aten._flash_attention_forward.default._schema
    return {argument.name for argument in schema.arguments} >= _NEEDED


def decode_splits(num_tokens: int, num_kv_heads: int) -> int:
    """Parts of each row's keys that a decoding step reads beside each other: enough that a GPU is busy.

    A constant of the bucket, so that it can be captured and a row's bits depend on no other row's length.
    """
    return max(1, min(MOST_SPLITS, BUSY_BLOCKS // (num_tokens * num_kv_heads)))


def fits(head_size: int) -> bool:
    """Tell whether the kernels take heads of this size."""
    return head_size <= MAX_HEAD_SIZE and head_size % HEAD_SIZE_MULTIPLE == 0


def check_block_tokens(block_tokens: int) -> None:
    """Raises InvalidRequestError for blocks that the kernels do not take."""
    if block_tokens % BLOCK_TOKENS:
        problem = (
            f"found {block_tokens}, attention on CUDA takes multiples of {BLOCK_TOKENS}; or turn varlen_attention off"
        )
        raise InvalidRequestError([FieldViolation("block_tokens", problem)])


def attend_varlen(
    q_THD: torch.Tensor,
    k_cache_NGD: torch.Tensor,
    v_cache_NGD: torch.Tensor,
    cu_tokens_R1: torch.Tensor,
    cu_keys_R1: torch.Tensor,
    num_keys_R: torch.Tensor,
    block_tables_RB: torch.Tensor,
    block_tokens: int,
    scale: float,
    window: int,
    decode_splits: int,
) -> torch.Tensor:
    """As `hotslot::attend` once the caches are written, without softcap; `[T, H, D]`.

    With `decode_splits` every row has exactly one token, which sees all keys of its row: the query heads of one key
    head are then computed together, and keys in so many parts.
    """
    paged = (-1, block_tokens, *k_cache_NGD.shape[1:])
    # Bounds will do, and are the same in every step. With a bound of 1 the kernels take each token for a row.
    max_tokens = 1 if decode_splits else max(q_THD.shape[0], 2)
    before, after = (-1, -1) if decode_splits else (window - 1 if window else -1, 0)
    out_THD: torch.Tensor = torch.ops.aten._flash_attention_forward(
        q_THD,
        k_cache_NGD.view(paged),
        v_cache_NGD.view(paged),
        cu_tokens_R1,
        cu_keys_R1,
        max_tokens,
        block_tables_RB.shape[1] * block_tokens,
        0.0,
        False,
        return_debug_mask=False,
        scale=scale,
        window_size_left=before,
        window_size_right=after,
        seqused_k=num_keys_R,
        block_table=block_tables_RB,
        # A number that torch chose would depend on how long the other rows are.
        num_splits=decode_splits or 1,
    )[0]
    return out_THD
