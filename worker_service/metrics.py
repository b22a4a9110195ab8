"""Metrics of a worker: what its parts counted, its engine's last snapshot, and adapters as pickers know them."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

from hotslot.contract.control import WorkerState
from hotslot.errors import HotslotError
from hotslot.references import DEFAULT_TAG, Reference
from shared.metrics.endpoint import Observation, observed
from shared.metrics.exposition import Readings
from shared.metrics.numbers import MAX_ADAPTERS, OTHER, Measured, states
from shared.metrics.table import WORKER
from worker_service.adapters.holding import Holding
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.front.status import slot_status
from worker_service.front.worker import ServingParts, ServingWorker
from worker_service.settings import WorkerSettings

FRESH_S = 0.1
"""Age of a snapshot from which a scrape asks for a newer one."""
PATIENCE_S = 0.05
"""Longest wait of a scrape for it: the engine answers between two steps."""
STATES = (WorkerState.STARTING, WorkerState.READY, WorkerState.DRAINING)


class WorkerReadings:
    """Readings of one worker. Belongs to its event loop."""

    def __init__(self, worker: ServingWorker, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells the seconds since 1970."""
        self._worker = worker
        self._clock = clock
        self._inspected_s = float("-inf")
        self._names: tuple[str, ...] = ()
        self._changed_s = 0.0

    async def refresh(self) -> None:
        """Ask the engine, where its last answer is old, and do not wait long for it."""
        worker, now_s = self._worker, time.monotonic()
        if worker.is_started and not worker.engine_is_silent and now_s - self._inspected_s >= FRESH_S:
            with suppress(TimeoutError, HotslotError):
                async with asyncio.timeout(PATIENCE_S):
                    worker.last_snapshot = await worker.parts.provider.tiers.inspect()
                    self._inspected_s = now_s

    def readings(self) -> Iterator[Measured]:
        """State of the worker and of its parts."""
        worker = self._worker
        yield from states("hotslot_worker_state", {state.value: worker.state is state for state in STATES})
        yield Measured("hotslot_engine_silent", worker.engine_is_silent)
        yield Measured("hotslot_requests_running", worker.in_flight)
        if worker.is_started:
            yield from worker.parts.provider.tiers.readings()
        if worker.last_snapshot is not None:
            yield from _engine_readings(worker.last_snapshot)

    def picker_readings(self) -> Iterator[Measured]:
        """Load and adapters under the names of the endpoint pickers."""
        worker, snapshot = self._worker, self._worker.last_snapshot
        if not worker.is_started or snapshot is None:
            return
        parts = worker.parts
        yield Measured("vllm:num_requests_running", snapshot.running)
        yield Measured("vllm:num_requests_waiting", snapshot.waiting + parts.provider.tiers.num_loading)
        yield Measured("vllm:kv_cache_usage_perc", 1 - snapshot.free_blocks / snapshot.num_blocks)
        yield Measured("vllm:cache_config_info", 1, (str(snapshot.block_tokens), str(snapshot.num_blocks)))
        yield from self._adapters(parts, snapshot)

    def _adapters(self, parts: ServingParts, snapshot: EngineSnapshot) -> Iterator[Measured]:
        holdings = parts.provider.tiers.holdings
        held = [(holding, slots is not None and slots.ready) for holding, slots in holdings.resident()]
        running = {name for holding, in_slots in held if in_slots for name in current_names(parts, holding)}
        asked = [*holdings.loading(), *(holding for holding, in_slots in held if not in_slots and self._waits(holding))]
        waiting = {name for holding in asked for name in current_names(parts, holding)} - running
        labels = (str(snapshot.num_slots), _listed(running), _listed(waiting))
        if labels != self._names:
            # The picker believes the series with the largest value.
            self._names, self._changed_s = labels, self._clock()
        yield Measured("vllm:lora_requests_info", self._changed_s, labels)
        yield Measured("vllm:num_gpu_loaded_lora_adapters", sum(in_slots for _, in_slots in held))
        yield Measured("vllm:num_cpu_loaded_lora_adapters", len(held))
        loaded: dict[tuple[str, str, str], None] = {}
        for holding, in_slots in held:
            for name in current_names(parts, holding):
                shown = name if len(loaded) < MAX_ADAPTERS else OTHER
                loaded[shown, "gpu" if in_slots else "cpu", str(holding.is_pinned).lower()] = None
        for key in loaded:
            yield Measured("vllm:lora_adapter_loaded", 1, key)

    @staticmethod
    def _waits(holding: Holding) -> bool:
        return holding.users > 0


@asynccontextmanager
async def served_metrics(
    worker: ServingWorker, settings: WorkerSettings, sources: list[Readings]
) -> AsyncIterator[Observation]:
    """The metrics of a worker over HTTP, until the block is left, where its settings want that.

    `sources` may grow while the worker starts.
    """
    readings = WorkerReadings(worker)
    picker = (readings.picker_readings,)
    async with observed(WORKER, settings, settings.transport(), sources, picker, refresh=readings.refresh) as metrics:
        sources.append(readings.readings)
        yield metrics


def current_names(parts: ServingParts, holding: Holding) -> Iterator[str]:
    """Names by which clients ask for a version now: a reference that has moved on is none."""
    for tenant, references in holding.uses.items():
        for reference in references:
            version = parts.provider.references.peek(tenant, reference)
            if version is not None and version.digest == holding.digest:
                yield from spellings(reference)


def spellings(reference: Reference) -> Iterator[str]:
    """The texts that are read as a reference."""
    if reference.tag == DEFAULT_TAG and reference.digest is None:
        yield str(reference.name)
    yield str(reference)


def _listed(names: set[str]) -> str:
    """Names in a label, as many as may be."""
    return ",".join(sorted(names)[:MAX_ADAPTERS])


def _engine_readings(snapshot: EngineSnapshot) -> Iterator[Measured]:
    yield Measured("hotslot_longest_stall_seconds", snapshot.longest_stall_s)
    yield Measured("hotslot_generated_tokens_total", snapshot.generated_tokens)
    yield Measured("hotslot_prefix_cache_queries_total", snapshot.prompt_tokens)
    yield Measured("hotslot_prefix_cache_hits_total", snapshot.cached_tokens)
    yield Measured("hotslot_preemptions_total", snapshot.preemptions)
    yield Measured("hotslot_recompiles_total", snapshot.recompiles)
    graphs = snapshot.graphs
    yield Measured("hotslot_step_graphs", graphs.num_captured)
    yield Measured("hotslot_captured_steps_total", graphs.num_replayed)
    uncaptured: Counter[str] = Counter()
    for each in graphs.uncaptured:
        uncaptured[each.reason] += each.num_steps
    yield from (Measured("hotslot_uncaptured_steps_total", steps, (why,)) for why, steps in uncaptured.items())
    yield from states("hotslot_sequences", {"running": snapshot.running, "waiting": snapshot.waiting})
    yield Measured("hotslot_max_sequences", snapshot.max_running)
    slots = slot_status(snapshot)
    resident = slots.num_slots - slots.free
    counts = {"free": slots.free, "resident": resident, "in_use": slots.in_use, "pinned": slots.pinned}
    yield from states("hotslot_slots", counts)
    kept, free = snapshot.kept_blocks, snapshot.free_blocks
    blocks = {"held": snapshot.num_blocks - free, "kept": kept, "free": free - kept}
    yield from states("hotslot_kv_blocks", blocks)
