"""One worker as `hotslot status` shows it. Pure: the time is passed in."""

from collections.abc import Iterable
from datetime import datetime

from hotslot.cli.fitted_table import FittedTable
from hotslot.cli.rendering import human_age, human_duration, human_size, short_digest, table
from hotslot.contract.control import ArenaStatus, GraphStatus, LoadedAdapter, WorkerStatus


def loaded_table(adapters: Iterable[LoadedAdapter], now: datetime) -> FittedTable:
    """The adapters that one worker holds."""
    made = table(
        "ADAPTER", "VERSION", "TIER", "RANK", "SLOTS", "USERS", "PINNED", "HOST SIZE", "LAST USED",
        right=("RANK", "USERS", "HOST SIZE"), gives_way=("LAST USED", "HOST SIZE", "USERS", "RANK", "VERSION", "SLOTS"),
    )  # fmt: skip
    for adapter in adapters:
        made.add_row(
            ", ".join(adapter.references) or "-",
            short_digest(adapter.digest),
            adapter.tier.value,
            str(adapter.max_rank),
            " ".join(map(str, adapter.slots)) or "-",
            str(adapter.users),
            "yes" if adapter.pinned else "",
            human_size(adapter.host_size_bytes),
            human_age(adapter.last_used_time, now),
        )
    return made


def _graph_rows(graphs: GraphStatus) -> list[tuple[str, str]]:
    """Captured steps, where the worker's device captures any or says why not."""
    if not graphs.captured and not graphs.uncaptured:
        return []
    whys = [f"{each.steps} steps of {each.kinds} kinds ran without: {each.why}" for each in graphs.uncaptured]
    return [("graphs", "; ".join([f"{graphs.captured} kinds of steps captured, {graphs.replays} replayed", *whys]))]


def _arena_rows(arena: ArenaStatus) -> list[tuple[str, str]]:
    """Registered memory, where the worker's device copies from it."""
    if not arena.size_bytes:
        return []
    return [("arena", f"{human_size(arena.used_bytes)} of {human_size(arena.size_bytes)} taken by adapters")]


def status_rows(status: WorkerStatus, now: datetime) -> list[tuple[str, str]]:
    """`hotslot status` without its table of adapters."""
    slots, kv, queue = status.slots, status.kv, status.queue
    taken = f"{slots.in_use} in use, {slots.pinned} pinned"
    sequences = f"{queue.running_sequences} of {queue.max_sequences} running, {queue.waiting_sequences} waiting"
    buckets = [f"{b.num_tokens}{'' if b.with_adapters else ' (base)'}" for b in status.buckets]
    stages = [f"{stage.name} {human_duration(stage.duration_s)}" for stage in status.startup]
    state = "drained: `hotslot undrain` takes it back" if status.drained else status.state.value
    why = [("not ready", status.why)] if status.why and not status.drained else []
    return [
        ("worker", f"{status.worker_id} ({state}, up {human_age(status.start_time, now)})"),
        *why,
        ("base model", status.base_model_digest),
        ("slots", f"{slots.free} of {slots.num_slots} free, {taken}, rank {slots.slot_rank} each"),
        ("KV blocks", f"{kv.free_blocks} of {kv.num_blocks} free, {kv.block_tokens} tokens each"),
        (
            "prefix cache",
            f"{kv.cached_tokens} of {kv.prompt_tokens} prompt tokens found, {kv.cached_blocks} blocks kept",
        ),
        ("sequences", f"{sequences}, {queue.loading_requests} requests wait for adapters"),
        (
            "work",
            f"{status.generated_tokens} tokens in {status.steps} steps, {status.activations} activations, "
            f"{kv.preemptions} preemptions, longest stall {human_duration(status.longest_stall_s)}",
        ),
        ("recompiles", str(status.recompiles)),
        *_graph_rows(status.graphs),
        *_arena_rows(status.arena),
        ("buckets", ", ".join(buckets) or "-"),
        ("start", ", ".join(stages) or "-"),
    ]
