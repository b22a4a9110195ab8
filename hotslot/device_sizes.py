"""Sizes of a worker that no setting gives: by the kind of its device and the memory that is free there; pure.

A worker calls it once its weights are loaded, and `hotslot plan` for a device that it is told of, so that both agree.
"""

from dataclasses import dataclass

from hotslot.errors import FieldViolation, InvalidRequestError

CPU, CUDA = "cpu", "cuda"
CPU_BUCKETS = (1, 4, 8, 32, 128)
CPU_SLOTS = 8
CPU_KV_TOKENS = 16384
CPU_ROWS = 8
CPU_BLOCK_TOKENS = 16
CUDA_BLOCK_TOKENS = 256
"""The fewest that paged attention takes there."""
CUDA_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
"""A step is captured for each; prompts go by the large ones."""
CUDA_SLOTS = (64, 32, 16, 8)
"""As many as take no more than SLOTS_SHARE of the memory, else the last."""
SLOTS_SHARE = 1 / 8
CUDA_ROWS = 128
ROW_TOKENS = 1024
"""Tokens of the KV cache for each row that there is."""
MOST_KV_TOKENS = 2**21
USED_SHARE = 0.9
"""Share of the free memory that is used: the rest is what the allocator loses between its pieces."""
STEP_BYTES = 2**30
"""Captured steps, their activations and logits."""
SIGNIFICANT_BITS = 4
"""Bits that count in the number of the KV cache's tokens: workers whose free memory differs a little share code."""


@dataclass(frozen=True, slots=True)
class WorkerSizes:
    """Sizes that settings may give; 0 and no buckets are by device."""

    token_buckets: tuple[int, ...] = ()
    num_slots: int = 0
    max_sequences: int = 0
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device and all that its memory is shared out by."""

    kind: str
    """`cpu` or `cuda`."""
    free_bytes: int
    """Free once the weights are there; only of a GPU."""
    slot_bytes: int
    """One slot, in all modules."""
    staging_bytes: int
    """The largest adapter, on its way into slots."""
    kv_token_bytes: int
    """Keys and values of one token."""
    block_tokens: int
    context_tokens: int
    """The longest sequence that there may be: a setting, or the model's context."""
    min_slots: int = 1
    """Slots of the largest adapter that is allowed."""


def sizes_for(device: DeviceMemory, wanted: WorkerSizes) -> WorkerSizes:
    """All sizes; those that are wanted stay as they are.

    Raises InvalidRequestError where a GPU has too little memory for one sequence of a block.
    """
    if device.kind != CUDA:
        buckets = wanted.token_buckets or CPU_BUCKETS
        kv_tokens = wanted.kv_tokens or CPU_KV_TOKENS
        rows = wanted.max_sequences or min(CPU_ROWS, max(buckets), -(-kv_tokens // device.block_tokens))
        return WorkerSizes(buckets, wanted.num_slots or CPU_SLOTS, rows, kv_tokens)
    left_bytes = int(device.free_bytes * USED_SHARE) - STEP_BYTES - device.staging_bytes
    kept_bytes = wanted.kv_tokens * device.kv_token_bytes
    num_slots = wanted.num_slots or _num_slots(device, left_bytes - kept_bytes)
    kv_tokens = wanted.kv_tokens or _kv_tokens(device, left_bytes - num_slots * device.slot_bytes)
    longest = min(device.context_tokens, kv_tokens)
    buckets = wanted.token_buckets or tuple(size for size in CUDA_BUCKETS if size <= longest)
    most_rows = min(CUDA_ROWS, max(buckets), -(-kv_tokens // device.block_tokens))
    rows = wanted.max_sequences or max(min(most_rows, _power_of_two(kv_tokens // ROW_TOKENS)), 1)
    return WorkerSizes(buckets, num_slots, rows, kv_tokens)


def _num_slots(device: DeviceMemory, left_bytes: int) -> int:
    fitting = (count for count in CUDA_SLOTS if count * device.slot_bytes <= left_bytes * SLOTS_SHARE)
    return max(next(fitting, CUDA_SLOTS[-1]), device.min_slots)


def _kv_tokens(device: DeviceMemory, left_bytes: int) -> int:
    """Whole blocks; one more is where padding writes."""
    block_bytes = device.block_tokens * max(device.kv_token_bytes, 1)
    num_blocks = min(left_bytes // block_bytes - 1, MOST_KV_TOKENS // device.block_tokens)
    if num_blocks < 1:
        found, needed = device.free_bytes, device.free_bytes - left_bytes + 2 * block_bytes
        problem = f"{found} bytes are free beside the weights, {needed} are needed for slots, steps and two blocks"
        raise InvalidRequestError(
            [FieldViolation("kv_tokens", f"{problem}; take fewer slots, a smaller max_rank or a larger device")]
        )
    spare_bits = max(num_blocks.bit_length() - SIGNIFICANT_BITS, 0)
    return (num_blocks >> spare_bits << spare_bits) * device.block_tokens


def _power_of_two(count: int) -> int:
    """The largest one that is not larger; 0 for 0."""
    return 1 << (count.bit_length() - 1) if count else 0
