"""Pulse of a worker: asks its engine regularly, says when it hangs, and keeps what the fleet is told fresh."""

import asyncio
from collections.abc import Callable

import structlog

from hotslot.contract.control import WorkerState
from hotslot.errors import EngineFailedError
from shared.fleet.demand import DEFAULT_DEMAND, DemandMeter, DemandOptions
from shared.fleet.records import MEMORY_TIERS, ReportedLoad, Resident, WorkerReport
from shared.fleet.reporting import urgent
from shared.loops import happens
from worker_service.engine.handle import EngineHandle
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.front.worker import ServingWorker

log = structlog.get_logger(__name__)

INTERVAL_S = 0.5
MAX_SILENCES = 4
"""Questions in a row, each waited for in vain, after which the engine is given up. They are counted rather than timed:
a process that was stopped for a while, with its engine, has asked once."""
TOLD_SHARE = 0.5
"""Change of the load, by rows, that others hear of at once rather than with the next heartbeat."""
MAX_USERS = 64
"""Tenants of one version that are reported, those that used it last: every router reads them with the placement."""


class Pulse:
    """Report of a worker on itself, and the loop that keeps it fresh. Belongs to one event loop."""

    def __init__(
        self, worker: ServingWorker, interval_s: float = INTERVAL_S, demand: DemandOptions = DEFAULT_DEMAND
    ) -> None:
        self._worker = worker
        self._interval_s = interval_s
        self._meter = DemandMeter(demand)
        self._told_in_flight = 0
        self._slots_each = 0.0
        """Mean of the slots that the residents in memory take, at the last look."""

    def report(self) -> WorkerReport:
        """Report of the worker on itself now; never blocks."""
        if not self._worker.is_started:
            return WorkerReport(WorkerState.STARTING, ReportedLoad(), ())
        load = self._load()
        self._told_in_flight = load.in_flight
        return WorkerReport(self._worker.state, load, self._residents())

    async def run(self, engine: EngineHandle, on_change: Callable[[], None]) -> None:
        """Ask the engine again and again; raises EngineFailedError once it is lost.

        `on_change` hears that versions came or went, and that the load changed by much.
        """
        told = urgent(self._residents())
        silences = 0
        while True:
            if await happens(engine.lost, self._interval_s):
                raise EngineFailedError("the engine is lost: its thread has ended, or it does not answer any more")
            try:
                snapshot = await self._worker.parts.provider.tiers.inspect()
            except EngineFailedError as exc:
                silences += 1
                log.error("engine_silent", why=exc.message, times=silences)
                self._worker.hear_engine(None)
                engine.fail_all(exc)
                if silences == MAX_SILENCES:
                    engine.give_up()
                continue
            silences = 0
            self._worker.hear_engine(snapshot)
            load = self._measure(snapshot)
            tell = urgent(self._residents())
            jumped = abs(load.in_flight - self._told_in_flight) >= TOLD_SHARE * load.max_sequences
            if tell != told or jumped:
                told = tell
                on_change()

    def _measure(self, snapshot: EngineSnapshot) -> ReportedLoad:
        """Take the moment into the moving averages."""
        load = self._load()
        now_s = asyncio.get_running_loop().time()
        self._meter.observe(snapshot.users, load.in_flight, load.max_sequences, now_s)
        return load

    def _load(self) -> ReportedLoad:
        snapshot = self._worker.last_snapshot
        if snapshot is None:
            return ReportedLoad()
        return ReportedLoad(
            running_sequences=snapshot.running,
            waiting_sequences=snapshot.waiting + self._worker.parts.provider.tiers.num_loading,
            max_sequences=snapshot.max_running,
            free_slots=snapshot.free_slots,
            num_slots=snapshot.num_slots,
            kv_usage=1 - snapshot.free_blocks / snapshot.num_blocks,
            mean_in_flight=self._meter.mean_in_flight,
            slots_each=self._slots_each,
        )

    def _residents(self) -> tuple[Resident, ...]:
        """Everything in host memory, where those in slots are too, and what is left on the disk."""
        tiers = self._worker.parts.provider.tiers
        residents = tiers.holdings.residency(MAX_USERS, self._meter.reported, tiers.engine.slots_for)
        sizes = [resident.num_slots for resident in residents if resident.tier in MEMORY_TIERS]
        self._slots_each = sum(sizes) / len(sizes) if sizes else 0.0
        return residents
