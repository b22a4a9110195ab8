"""Live state of what a gateway serves from, as its page shows it: workers with reasons, adapters by worker. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from hotslot.contract.control import ModelInfo, WorkerState, WorkerStatus
from hotslot.contract.placement import Placement, Tier, Worker
from hotslot.contract.store_status import StoreStatus
from hotslot.references import DEFAULT_TAG


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker as the page shows it. It has no address: those stay inside."""

    worker_id: str
    base_model: str
    state: str
    reasons: tuple[str, ...] = ()
    """Whatever keeps it from serving well, in words."""
    running: int = 0
    max_running: int = 0
    waiting: int = 0
    loading: int = 0
    """Requests that wait for an adapter."""
    num_slots: int = 0
    free_slots: int = 0
    kv_usage: float = 0.0
    generated_tokens: int | None = None
    """Tokens since its start; None where it was not asked."""
    start_time: str = ""
    version: str = ""
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class HeldAdapter:
    """A version on a worker."""

    worker_id: str
    adapter: str
    digest: str
    tier: str
    pinned: bool
    users: int | None = None
    """Requests that use it now; None where the worker was not asked."""


@dataclass(frozen=True, slots=True)
class LiveState:
    """Everything that is served from, at one moment."""

    kind: str
    """`fleet`, or `worker` where the gateway has one."""
    version: str
    """Release of the gateway."""
    time: str
    problems: tuple[str, ...]
    """Reasons for which the whole is not well."""
    store_version: str = ""
    workers: tuple[LiveWorker, ...] = ()
    held: tuple[HeldAdapter, ...] = ()
    num_workers: int = 0
    """Workers that there are, more than `workers` where there are many."""
    num_held: int = 0


def live_worker(worker: Worker, status: WorkerStatus | None, failure: str) -> LiveWorker:
    """A worker by its heartbeat, and by its own status where it was asked and answered."""
    load = worker.load
    beaten = LiveWorker(
        worker.worker_id,
        worker.base_model,
        worker.state.value,
        running=load.running_sequences,
        max_running=load.max_sequences,
        waiting=load.waiting_sequences,
        num_slots=load.num_slots,
        free_slots=load.free_slots,
        kv_usage=load.kv_usage,
        start_time=_written(worker.start_time),
        dtype=worker.dtype,
    )
    if status is None:
        unready = "" if worker.state is WorkerState.READY else f"its last heartbeat says {worker.state.value}"
        return replace(beaten, reasons=tuple(filter(None, (failure and f"it does not answer: {failure}", unready))))
    return _with_status(beaten, status)


def only_worker(info: ModelInfo | None, status: WorkerStatus | None, failure: str) -> LiveWorker:
    """A worker without a fleet."""
    base = info.base_model if info is not None else ""
    if status is None:
        return LiveWorker("worker", base, "away", reasons=(f"it does not answer: {failure}",))
    return _with_status(LiveWorker(status.worker_id, base, "", dtype=info.dtype if info is not None else ""), status)


def _with_status(worker: LiveWorker, status: WorkerStatus) -> LiveWorker:
    kv, queue, slots = status.kv, status.queue, status.slots
    return replace(
        worker,
        state=status.state.value,
        reasons=tuple(reasons_of(status)),
        running=queue.running_sequences,
        max_running=queue.max_sequences,
        waiting=queue.waiting_sequences,
        loading=queue.loading_requests,
        num_slots=slots.num_slots,
        free_slots=slots.free,
        kv_usage=1 - kv.free_blocks / kv.num_blocks if kv.num_blocks else 0.0,
        generated_tokens=status.generated_tokens,
        start_time=_written(status.start_time),
        version=status.version,
    )


def reasons_of(status: WorkerStatus) -> list[str]:
    """Whatever keeps a worker from serving well, in words."""
    queue, reasons = status.queue, []
    if status.state is not WorkerState.READY:
        reasons.append(status.why or ("it was drained" if status.drained else f"it is {status.state.value}"))
    if queue.max_waiting and queue.waiting_sequences >= queue.max_waiting:
        reasons.append(f"its queue is full with {queue.waiting_sequences} sequences")
    if status.recompiles:
        reasons.append(f"it compiled {status.recompiles} graphs after its warm-up, which delays requests")
    return reasons


def store_problems(status: StoreStatus | None, failure: str) -> list[str]:
    """Reasons for which the store is not well; parts by their names, since their reasons may name addresses."""
    if status is None:
        return [f"the store does not tell its status: {failure}"] if failure else []
    return [f"the store's {part.name.replace('_', ' ')} does not work" for part in status.failing]


def none_ready(workers: Sequence[LiveWorker]) -> str:
    """Problem of a whole without a worker that takes requests; empty where there is one."""
    return "" if any(worker.state == WorkerState.READY for worker in workers) else "no worker takes requests"


def placed(placement: Placement) -> HeldAdapter:
    """A placement as the page shows it."""
    tier = placement.tier.value if placement.tier is not Tier.UNSPECIFIED else Tier.NONE.value
    name = placement.adapter or placement.adapter_digest
    return HeldAdapter(placement.worker_id, name, placement.adapter_digest, tier, placement.pinned)


def shown_name(references: Sequence[str], digest: str) -> str:
    """Name of a version by the references that requests used for it; its digest where there is none."""
    return references[0].removesuffix(f":{DEFAULT_TAG}") if references else digest


def _written(moment: datetime | None) -> str:
    return moment.isoformat() if moment is not None else ""
