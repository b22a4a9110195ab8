"""Status of a worker from its engine's snapshot."""

from hotslot.contract.control import ArenaStatus, GraphStatus, KvStatus, QueueStatus, SlotStatus, UncapturedSteps
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.pinned_arena import PinnedArena


def slot_status(snapshot: EngineSnapshot) -> SlotStatus:
    """Slots, and how many hold adapters in use and pinned ones."""
    holders = snapshot.holders
    return SlotStatus(
        num_slots=snapshot.num_slots,
        slot_rank=snapshot.slot_rank,
        free=snapshot.free_slots,
        in_use=sum(len(holder.slots) for holder in holders if holder.users),
        pinned=sum(len(holder.slots) for holder in holders if holder.pinned),
    )


def kv_status(snapshot: EngineSnapshot) -> KvStatus:
    """KV blocks and the prefix cache."""
    return KvStatus(
        num_blocks=snapshot.num_blocks,
        free_blocks=snapshot.free_blocks,
        block_tokens=snapshot.block_tokens,
        cached_blocks=snapshot.kept_blocks,
        prompt_tokens=snapshot.prompt_tokens,
        cached_tokens=snapshot.cached_tokens,
        preemptions=snapshot.preemptions,
    )


def queue_status(snapshot: EngineSnapshot, num_loading: int) -> QueueStatus:
    """Sequences, and requests that wait for adapters."""
    return QueueStatus(
        running_sequences=snapshot.running,
        waiting_sequences=snapshot.waiting,
        loading_requests=num_loading,
        max_sequences=snapshot.max_running,
        max_waiting=snapshot.max_waiting,
    )


def graph_status(snapshot: EngineSnapshot) -> GraphStatus:
    """Captured steps, and the reasons for which others are not."""
    counts = snapshot.graphs
    uncaptured = tuple(UncapturedSteps(each.why, each.num_kinds, each.num_steps) for each in counts.uncaptured)
    return GraphStatus(counts.num_captured, counts.num_replayed, uncaptured)


def arena_status(arena: PinnedArena | None) -> ArenaStatus:
    """Registered host memory, and how much of it adapters take."""
    return ArenaStatus(arena.size_bytes, arena.size_bytes - arena.free_bytes) if arena is not None else ArenaStatus()
