"""Snapshot of the engine's state, for status and metrics."""

from dataclasses import dataclass

from hotslot.ids import Digest
from worker_service.engine.graph_counts import NO_GRAPHS, GraphCounts


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """One adapter in slots."""

    digest: Digest
    slots: tuple[int, ...]
    users: int
    pinned: bool
    last_used_s: float
    ready: bool
    """False while it is being copied."""


@dataclass(frozen=True)
class EngineSnapshot:
    """The engine's state at one moment; counts are since the start."""

    running: int
    waiting: int
    max_running: int
    max_waiting: int
    num_slots: int
    slot_rank: int
    free_slots: int
    holders: tuple[SlotHolder, ...]
    users: dict[Digest, int]
    """Running and waiting sequences by adapter, in slots or not."""
    num_blocks: int
    free_blocks: int
    """Blocks that no sequence holds; those kept for their content count."""
    block_tokens: int
    steps: int
    generated_tokens: int
    activations: int
    recompiles: int
    kept_blocks: int = 0
    """Blocks that no sequence holds and whose content is in the prefix cache."""
    prompt_tokens: int = 0
    """Tokens of all prompts that got a row."""
    cached_tokens: int = 0
    """Tokens of these prompts that were found in the prefix cache."""
    preemptions: int = 0
    """Sequences that lost their blocks and were computed again."""
    graphs: GraphCounts = NO_GRAPHS
    longest_stall_s: float = 0.0
    """Longest time between the end of a step and the next one while there was something to compute."""
