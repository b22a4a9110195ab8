"""Looks at the engine regularly: says when it hangs, and keeps what others are told of this worker fresh."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from hotslot.errors import EngineFailedError
from hotslot.ids import DEFAULT_TENANT
from hotslot.references import parse_reference
from shared.coordination.registration import urgent
from shared.fleet.demand import DEFAULT_DEMAND, DemandMeter, DemandOptions
from shared.fleet.records import Resident, Tier, WorkerLoad, WorkerReport, WorkerState
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.front.worker import Parts, State, Worker

log = structlog.get_logger(__name__)

INTERVAL_S = 0.5
MAX_SILENCES = 4
"""Questions in a row, each waited for in vain, after which the engine is given up. They are counted rather than timed:
a process that was stopped for a while, with its engine, has asked once."""
TOLD_SHARE = 0.5
"""Change of the load, by rows, that others hear of at once rather than with the next heartbeat."""
MAX_USERS = 64
"""Tenants of one version that are reported, those that used it last: every router reads them with the placement."""

_STATES = {
    State.STARTING: WorkerState.STARTING,
    State.READY: WorkerState.READY,
    State.DRAINING: WorkerState.DRAINING,
}


class Pulse:
    """A background task between `async with` and its end, once the worker's parts exist."""

    def __init__(
        self,
        worker: Worker,
        parts: Parts,
        on_health: Callable[[bool], None],
        interval_s: float = INTERVAL_S,
        demand: DemandOptions = DEFAULT_DEMAND,
    ) -> None:
        """`on_health` hears whether the engine answers, when that changes."""
        self._worker = worker
        self._parts = parts
        self.on_change: Callable[[], None] = lambda: None
        """Hears that versions came or went, that the load changed by much, or that the engine hangs or goes on."""
        self._on_health = on_health
        self._interval_s = interval_s
        self._meter = DemandMeter(demand)
        self._told_in_flight = 0
        self._silences = 0
        self._task: asyncio.Task[None] | None = None

    def report(self) -> WorkerReport:
        """Report of the worker on itself now; never blocks."""
        load = self._load()
        self._told_in_flight = load.in_flight
        return WorkerReport(_STATES[self._worker.state], load, self._residents())

    async def __aenter__(self) -> "Pulse":
        self._worker.last_snapshot = await self._parts.engine.inspect()
        self._task = asyncio.create_task(self._run(), name="pulse")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        told = urgent(self._residents())
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                snapshot = await self._parts.engine.inspect()
            except EngineFailedError as exc:
                self._silences += 1
                log.error("engine_silent", why=exc.message, times=self._silences)
                self._set_silent(True)
                self._parts.engine.fail_all(exc)
                if self._silences == MAX_SILENCES:
                    self._parts.engine.give_up()
                continue
            self._silences = 0
            self._worker.last_snapshot = snapshot
            self._set_silent(False)
            load = self._measure(snapshot)
            tell = urgent(self._residents())
            jumped = abs(load.in_flight - self._told_in_flight) >= TOLD_SHARE * load.max_sequences
            if tell != told or jumped:
                told = tell
                self.on_change()

    def _set_silent(self, silent: bool) -> None:
        if silent != self._worker.engine_is_silent:
            self._worker.engine_is_silent = silent
            self._on_health(not silent)
            self.on_change()

    def _measure(self, snapshot: EngineSnapshot) -> WorkerLoad:
        """Take the moment into the moving averages."""
        load = self._load()
        now_s = asyncio.get_running_loop().time()
        self._meter.observe(snapshot.users, load.in_flight, load.max_sequences, now_s)
        return load

    def _load(self) -> WorkerLoad:
        snapshot = self._worker.last_snapshot
        if snapshot is None:
            return WorkerLoad()
        return WorkerLoad(
            running_sequences=snapshot.running,
            waiting_sequences=snapshot.waiting + self._parts.provider.num_loading,
            max_sequences=snapshot.max_running,
            free_slots=snapshot.free_slots,
            num_slots=snapshot.num_slots,
            kv_usage=1 - snapshot.free_blocks / snapshot.num_blocks,
            mean_in_flight=self._meter.mean_in_flight,
        )

    def _residents(self) -> tuple[Resident, ...]:
        """Everything in host memory, where those in slots are too, and what is left on the disk."""
        provider = self._parts.provider
        snapshot = self._worker.last_snapshot
        holders = {h.digest for h in snapshot.holders if h.ready} if snapshot is not None else set()
        users = provider.seen.latest_users(MAX_USERS)
        residents = []
        tiers = dict.fromkeys(provider.versions_on_disk(), Tier.DISK)
        for entry in provider.loader.tier.entries():
            digest = entry.weights.digest
            tiers[digest] = Tier.SLOT if digest in holders else Tier.HOST
        for digest, tier in tiers.items():
            names = [(tenant, str(parse_reference(text).name)) for tenant, text in users.get(digest, ())]
            (tenant, name), *others = names or [(DEFAULT_TENANT, "")]
            pinned = provider.pins.is_pinned(digest) or bool(provider.num_keeping(digest))
            demand = self._meter.reported(digest)
            residents.append(Resident(digest, tier, pinned, name, tenant, demand, tuple(others)))
        return tuple(sorted(residents, key=lambda resident: resident.digest))
