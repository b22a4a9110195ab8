"""Orders of what top and status list: names from A on, numbers from the largest on. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from hotslot.contract.control import AdapterTier, LoadedAdapter
from hotslot.contract.placement import Placement, Worker

Row = TypeVar("Row")
_TIERS = {tier: index for index, tier in enumerate((AdapterTier.SLOT, AdapterTier.HOST, AdapterTier.DISK))}
_NEVER = datetime.min.replace(tzinfo=UTC)


class WorkerOrder(StrEnum):
    """Order of workers."""

    NAME = "name"
    STATE = "state"
    RUNNING = "running"
    WAITING = "waiting"
    TOKENS = "tokens"
    KV = "kv"
    UP = "up"


class AdapterOrder(StrEnum):
    """Order of the adapters that a worker holds."""

    NAME = "name"
    TIER = "tier"
    USERS = "users"
    SIZE = "size"
    RANK = "rank"
    USED = "used"


def ordered_workers(
    workers: Iterable[Worker], order: WorkerOrder, tokens_per_s: Mapping[str, float] | None = None
) -> list[Worker]:
    """Workers in an order; equal ones by their names."""
    rates = tokens_per_s or {}

    def key(worker: Worker) -> tuple[object, ...]:
        load = worker.load
        by: dict[WorkerOrder, object] = {
            WorkerOrder.NAME: 0,
            WorkerOrder.STATE: worker.state.value,
            WorkerOrder.RUNNING: -load.running_sequences,
            WorkerOrder.WAITING: -load.waiting_sequences,
            WorkerOrder.TOKENS: -rates.get(worker.worker_id, 0.0),
            WorkerOrder.KV: -load.kv_usage,
            WorkerOrder.UP: worker.start_time or _NEVER,
        }
        return by[order], worker.worker_id

    return sorted(workers, key=key)


def ordered_placements(placements: Iterable[Placement]) -> list[Placement]:
    """Placements by adapter, and then by worker."""
    return sorted(placements, key=lambda one: (one.adapter or one.adapter_digest, one.worker_id))


def ordered_adapters(adapters: Iterable[LoadedAdapter], order: AdapterOrder) -> list[LoadedAdapter]:
    """Adapters of a worker in an order; equal ones by their names."""

    def key(adapter: LoadedAdapter) -> tuple[object, ...]:
        last_used = adapter.last_used_time or _NEVER
        by: dict[AdapterOrder, object] = {
            AdapterOrder.NAME: 0,
            AdapterOrder.TIER: _TIERS.get(adapter.tier, len(_TIERS)),
            AdapterOrder.USERS: -adapter.users,
            AdapterOrder.SIZE: -adapter.host_size_bytes,
            AdapterOrder.RANK: -adapter.max_rank,
            AdapterOrder.USED: _NEVER - last_used,
        }
        return by[order], ", ".join(adapter.references) or "~", adapter.digest

    return sorted(adapters, key=key)


def first_of(rows: Sequence[Row], limit: int) -> tuple[list[Row], str]:
    """The first rows, all of them for 0, and a line that says how many are left out; empty for none."""
    if not limit or len(rows) <= limit:
        return list(rows), ""
    return list(rows[:limit]), f"and {len(rows) - limit} more (--limit {len(rows)} shows all)"
