"""Capacity: memory of a worker and the number of workers, by formulas (docs/capacity.md); pure.

Memory follows from sizes and settings, exactly. Time follows from a step's cost, which is fitted to measured steps:
`base_s + per_token_s · tokens`, since a step reads all weights once, and then computes for each token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hotslot.device_sizes import (
    CPU,
    CPU_BLOCK_TOKENS,
    CUDA,
    CUDA_BLOCK_TOKENS,
    MOST_KV_TOKENS,
    DeviceMemory,
    WorkerSizes,
    sizes_for,
)
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.formats.model_sizes import ModelSizes

ELEMENT_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
HOST_SPARE = 1.125
"""Host memory on CPU may exceed its setting by an eighth (`host_cache_bytes`)."""
MAX_BUSY = 0.7
"""Share of a worker's steps that is planned for: above it waiting grows without bound."""
DEFAULT_MAX_RANK = 64
"""Largest rank that a worker takes, where no setting says more."""
DEFAULT_HOMES = 1.5
"""Workers that hold an adapter, on average: one, and more of those that are wanted most."""


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """Settings of a worker that its memory follows from."""

    dtype: str = "bfloat16"
    num_slots: int = 8
    slot_rank: int = 16
    kv_tokens: int = 16384
    block_tokens: int = 16
    max_sequences: int = 8
    max_bucket: int = 128

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests and adapters that are planned for."""

    num_adapters: int
    rank: int
    requests_per_s: float
    prompt_tokens: int = 256
    answer_tokens: int = 128
    homes: float = DEFAULT_HOMES


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step, by its tokens."""

    base_s: float
    per_token_s: float

    def seconds(self, num_tokens: float) -> float:
        """Seconds of a step of so many tokens."""
        return self.base_s + self.per_token_s * num_tokens


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Bytes of a worker."""

    weights_bytes: int
    slot_bytes: int
    """One slot, in all modules."""
    slots_bytes: int
    kv_bytes: int
    adapter_bytes: int
    """One adapter that targets all modules, in host memory."""
    slots_per_adapter: int
    host_cache_bytes: int
    """For the adapters that a worker is to hold."""

    @property
    def device_bytes(self) -> int:
        """Everything that lies where the model is."""
        return self.weights_bytes + self.slots_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """A deployment that carries a workload."""

    memory: WorkerMemory
    replicas: int
    adapters_per_worker: int
    slots_wanted: int
    """Slots that the adapters of a full batch take, if all are wanted alike."""
    requests_per_s_per_worker: float | None
    """None without a step's cost."""
    answer_s: float | None
    """Seconds from a request's turn to its last token, in a full batch."""


def fit_step_cost(steps: Sequence[tuple[int, float]]) -> StepCost:
    """Line through measured steps of (tokens, seconds), by least squares of relative errors; never a negative part.

    Raises ValueError without a step, or with one of no tokens or no time.
    """
    if not steps or any(tokens < 1 or seconds <= 0 for tokens, seconds in steps):
        raise ValueError("expected measured steps, each of one token or more and some time")
    weights = [1 / seconds**2 for _, seconds in steps]
    total = sum(weights)
    mean_tokens = sum(w * tokens for w, (tokens, _) in zip(weights, steps, strict=True)) / total
    mean_s = sum(w * seconds for w, (_, seconds) in zip(weights, steps, strict=True)) / total
    spread = sum(w * (tokens - mean_tokens) ** 2 for w, (tokens, _) in zip(weights, steps, strict=True))
    shared = sum(
        w * (tokens - mean_tokens) * (seconds - mean_s) for w, (tokens, seconds) in zip(weights, steps, strict=True)
    )
    per_token_s = max(0.0, shared / spread) if spread else 0.0
    base_s = mean_s - per_token_s * mean_tokens
    if base_s >= 0:
        return StepCost(base_s, per_token_s)
    through_zero = sum(w * tokens * seconds for w, (tokens, seconds) in zip(weights, steps, strict=True))
    return StepCost(0.0, through_zero / sum(w * tokens**2 for w, (tokens, _) in zip(weights, steps, strict=True)))


def device_memory(
    kind: str,
    memory_bytes: int,
    sizes: ModelSizes,
    element_bytes: int,
    slot_rank: int,
    max_rank: int,
    block_tokens: int,
    context_tokens: int = MOST_KV_TOKENS,
) -> DeviceMemory:
    """A device of so much memory, less the weights of a model, and what it is shared out by."""
    feature_bytes = sizes.slot_features * element_bytes
    return DeviceMemory(
        kind=kind,
        free_bytes=memory_bytes - sizes.num_parameters * element_bytes,
        slot_bytes=slot_rank * feature_bytes,
        # A bias takes a rank more.
        staging_bytes=(max_rank + 1) * feature_bytes,
        kv_token_bytes=sizes.kv_features * element_bytes,
        block_tokens=block_tokens,
        context_tokens=context_tokens,
        min_slots=slots_per_adapter(max_rank, slot_rank),
    )


def shape_on(kind: str, memory_bytes: int, sizes: ModelSizes, asked: WorkerShape, max_rank: int) -> WorkerShape:
    """A worker on a device of so much memory: what is 0 in `asked` is what the worker itself would choose.

    Raises InvalidRequestError for a device of another kind, and for a GPU whose memory is not given or is too small.
    """
    if kind not in (CPU, CUDA):
        raise InvalidRequestError([FieldViolation("--device", f"found {kind!r}, expected {CPU} or {CUDA}")])
    if kind == CUDA and not memory_bytes:
        raise InvalidRequestError([FieldViolation("--memory-gib", "missing, expected the memory of the GPU")])
    block_tokens = asked.block_tokens or (CUDA_BLOCK_TOKENS if kind == CUDA else CPU_BLOCK_TOKENS)
    memory = device_memory(kind, memory_bytes, sizes, asked.element_bytes, asked.slot_rank, max_rank, block_tokens)
    buckets = (asked.max_bucket,) if asked.max_bucket else ()
    found = sizes_for(memory, WorkerSizes(buckets, asked.num_slots, asked.max_sequences, asked.kv_tokens))
    return replace(
        asked,
        num_slots=found.num_slots,
        kv_tokens=found.kv_tokens,
        block_tokens=block_tokens,
        max_sequences=found.max_sequences,
        max_bucket=found.token_buckets[-1],
    )


def memory_of(sizes: ModelSizes, shape: WorkerShape, rank: int, num_held: int) -> WorkerMemory:
    """Bytes of a worker that holds so many adapters of a rank in host memory."""
    element_bytes = shape.element_bytes
    slot_bytes = shape.slot_rank * sizes.slot_features * element_bytes
    adapter_bytes = rank * sizes.slot_features * element_bytes
    num_blocks = math.ceil(shape.kv_tokens / shape.block_tokens)
    return WorkerMemory(
        weights_bytes=sizes.num_parameters * element_bytes,
        slot_bytes=slot_bytes,
        slots_bytes=shape.num_slots * slot_bytes,
        # One block more is where padding writes.
        kv_bytes=(num_blocks + 1) * shape.block_tokens * sizes.kv_features * element_bytes,
        adapter_bytes=adapter_bytes,
        slots_per_adapter=slots_per_adapter(rank, shape.slot_rank),
        host_cache_bytes=math.ceil(num_held * adapter_bytes * HOST_SPARE),
    )


def slots_per_adapter(rank: int, slot_rank: int) -> int:
    """Slots that an adapter takes."""
    return max(1, math.ceil(rank / slot_rank))


def plan(sizes: ModelSizes, shape: WorkerShape, workload: Workload, cost: StepCost | None) -> CapacityPlan:
    """Workers that carry a workload, each with rows full of it."""
    rate = answer_s = None
    replicas = 1
    if cost is not None:
        rows = min(shape.max_sequences, shape.max_bucket)
        decode_s = cost.seconds(rows)
        prefill_s = _prefill_s(cost, workload.prompt_tokens, shape.max_bucket)
        # A row's share of a step for each token, and the steps that its prompt keeps for itself.
        rate = MAX_BUSY / (prefill_s + workload.answer_tokens * decode_s / rows)
        answer_s = prefill_s + workload.answer_tokens * decode_s
        replicas = max(1, math.ceil(workload.requests_per_s / rate))
    num_held = min(workload.num_adapters, math.ceil(workload.num_adapters * workload.homes / replicas))
    memory = memory_of(sizes, shape, workload.rank, num_held)
    distinct = _distinct(workload.num_adapters, shape.max_sequences)
    return CapacityPlan(memory, replicas, num_held, math.ceil(distinct) * memory.slots_per_adapter, rate, answer_s)


def _prefill_s(cost: StepCost, prompt_tokens: int, max_bucket: int) -> float:
    whole, rest = divmod(prompt_tokens, max_bucket)
    return whole * cost.seconds(max_bucket) + (cost.seconds(rest) if rest else 0.0)


def _distinct(num_adapters: int, num_rows: int) -> float:
    """Different adapters that rows have on average, if each row has any of them alike."""
    return num_adapters * (1 - (1 - 1 / num_adapters) ** num_rows)
