"""One worker as its operator sees it: its model, its adapters by tier, its slots and queues."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from hotslot.contract.generation import AdapterSelection


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that a worker serves, and its limits."""

    base_model: str
    base_model_digest: str
    model_type: str
    dtype: str
    max_sequence_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    has_chat_template: bool
    target_modules: tuple[str, ...]
    num_slots: int
    slot_rank: int
    max_rank: int
    max_sequences: int
    worker_id: str


class AdapterTier(StrEnum):
    """Tier of an adapter on a worker, fastest first."""

    UNSPECIFIED = "unspecified"
    SLOT = "slot"
    HOST = "host"
    DISK = "disk"
    LOADING = "loading"


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that a worker holds."""

    digest: str
    references: tuple[str, ...]
    tier: AdapterTier
    max_rank: int
    slots: tuple[int, ...]
    users: int
    pinned: bool
    host_size_bytes: int
    last_used_time: datetime | None


@dataclass(frozen=True, slots=True)
class LoadTimings:
    """Durations of a load's stages; those that were not needed are 0."""

    resolve_s: float
    fetch_s: float
    wait_s: float
    activate_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Outcome of a load."""

    adapter: LoadedAdapter
    previous_digest: str
    """Version that the reference stood for on this worker before; empty when there was none."""
    timings: LoadTimings


@dataclass(frozen=True, slots=True)
class WorkerAdapters:
    """Every adapter that a worker holds, and what a request that names none gets."""

    adapters: tuple[LoadedAdapter, ...]
    default_adapters: tuple[AdapterSelection, ...]
    adapters_enabled: bool


class WorkerState(StrEnum):
    """State of a worker: only a ready one takes requests."""

    UNSPECIFIED = "unspecified"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class CompiledBucket:
    """A compiled shape."""

    num_tokens: int
    with_adapters: bool
    compile_time_s: float


@dataclass(frozen=True, slots=True)
class StartupStage:
    """A part of a worker's start."""

    name: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """Slots of a worker."""

    num_slots: int = 0
    slot_rank: int = 0
    free: int = 0
    in_use: int = 0
    pinned: int = 0


@dataclass(frozen=True, slots=True)
class KvStatus:
    """KV blocks of a worker, and hits of its prefix cache."""

    num_blocks: int = 0
    free_blocks: int = 0
    block_tokens: int = 0
    cached_blocks: int = 0
    """Free blocks whose content can still be found."""
    prompt_tokens: int = 0
    """Tokens of all prompts since the start."""
    cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache."""
    preemptions: int = 0
    """Sequences that lost their blocks and were computed again."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """Sequences and requests of a worker."""

    running_sequences: int = 0
    waiting_sequences: int = 0
    loading_requests: int = 0
    max_sequences: int = 0
    max_waiting: int = 0


@dataclass(frozen=True, slots=True)
class UncapturedSteps:
    """Kinds of steps that run uncaptured for one reason."""

    why: str
    kinds: int
    steps: int
    """Steps that ran so since the start."""


@dataclass(frozen=True, slots=True)
class GraphStatus:
    """Captured steps of a worker; nothing where its device captures none."""

    captured: int = 0
    """Kinds of steps that were captured at the start."""
    replays: int = 0
    """Steps that a captured graph computed."""
    uncaptured: tuple[UncapturedSteps, ...] = ()


@dataclass(frozen=True, slots=True)
class ArenaStatus:
    """Host memory that the device copies adapters from; nothing where it reads the host's own."""

    size_bytes: int = 0
    """Bytes registered with the device at the start."""
    used_bytes: int = 0
    """Bytes that adapters take now, in the host tier or on their way to the device."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker at one moment; while it starts, as far as there is anything to say."""

    worker_id: str
    state: WorkerState
    base_model_digest: str = ""
    start_time: datetime | None = None
    buckets: tuple[CompiledBucket, ...] = ()
    recompiles: int = 0
    """Graphs compiled after warm-up ended; anything but 0 is a bug."""
    slots: SlotStatus = SlotStatus()
    kv: KvStatus = KvStatus()
    queue: QueueStatus = QueueStatus()
    steps: int = 0
    generated_tokens: int = 0
    activations: int = 0
    startup: tuple[StartupStage, ...] = ()
    longest_stall_s: float = 0.0
    """Longest time between two steps while there was something to compute."""
    drained: bool = False
    """Takes no requests because of a drain, until it is undrained."""
    why: str = ""
    """Reason why it takes no requests itself; empty while it does, and with workers of an earlier release."""
    version: str = ""
    """Release of the worker; empty with workers of an earlier release."""
    graphs: GraphStatus = GraphStatus()
    arena: ArenaStatus = ArenaStatus()
