"""A simulated worker: rows, slots, a host tier and loads that take time; it decides as the real one does."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, WorkerId
from shared.fleet.demand import DemandMeter
from shared.fleet.records import ReportedLoad, Resident, WorkerInfo, WorkerRecord

STORE_LOAD_S = 0.5
"""From the store to host memory."""
ACTIVATE_S = 0.005
"""From host memory to slots."""


@dataclass(frozen=True, slots=True)
class WorkerSize:
    """Room of one worker."""

    rows: int = 16
    slots: int = 32
    host_adapters: int = 64
    """Adapters of one slot that fit into host memory."""
    parallel_loads: int = 4


@dataclass(eq=False, slots=True)
class Request:
    """One request on its way."""

    arrival_s: float
    adapter: int
    service_s: float


@dataclass(eq=False, slots=True)
class SimulatedWorker:
    """State and transitions; `at` schedules what happens later."""

    info: WorkerInfo
    size: WorkerSize
    digests: list[Digest]
    at: Callable[[float, Callable[[float], None]], None]
    on_start: Callable[[Request, float], None]
    on_cold_load: Callable[["SimulatedWorker", int, float], None]
    on_resident: Callable[["SimulatedWorker", int, bool], None]
    slots_of: Sequence[int] = ()
    """Slots that each adapter takes; one, where none are given."""
    state: WorkerState = WorkerState.READY
    is_alive: bool = True
    host: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Resident adapters, least recently used first."""
    users: Counter[int] = field(default_factory=Counter)
    """Requests that hold each resident adapter."""
    slots: OrderedDict[int, None] = field(default_factory=OrderedDict)
    running: set[Request] = field(default_factory=set)
    waiting: deque[Request] = field(default_factory=deque)
    loading: dict[int, list[Request]] = field(default_factory=dict)
    load_queue: deque[int] = field(default_factory=deque)
    num_loading: int = 0
    _held_slots: int = 0
    """Slots that everything in host memory takes."""
    in_flight: int = 0
    busy_s: float = 0.0
    """Integral of `in_flight`."""
    counted_until_s: float = 0.0
    window_from_s: float | None = None
    """Since when it has been there in the present window; None if not from its beginning."""
    window_busy_s: float = 0.0
    meter: DemandMeter = field(default_factory=DemandMeter)
    changed: set[int] = field(default_factory=set)
    """Adapters whose tier or demand is not yet reported."""

    @property
    def worker_id(self) -> WorkerId:
        return self.info.worker_id

    @property
    def takes_requests(self) -> bool:
        """True if it is there to stay."""
        return self.is_alive and self.state is WorkerState.READY

    def accept(self, request: Request, now_s: float) -> None:
        """Load the request's adapter if it is not here, then give it a row when one is free."""
        self.count(now_s)
        self.in_flight += 1
        adapter = request.adapter
        if adapter in self.host:
            self.users[adapter] += 1
            self.host.move_to_end(adapter)
            self._queue(request, now_s)
        elif adapter in self.loading:
            self.loading[adapter].append(request)
        else:
            self.loading[adapter] = [request]
            self.on_cold_load(self, adapter, now_s)
            self.load_queue.append(adapter)
            self._load_next(now_s)

    def count(self, now_s: float) -> None:
        """Bring the integral of the load up to now."""
        self.busy_s += self.in_flight * (now_s - self.counted_until_s)
        self.counted_until_s = now_s

    def lose(self) -> list[Request]:
        """Die; returns what was in flight."""
        self.is_alive = False
        lost = [*self.running, *self.waiting, *(r for waiting in self.loading.values() for r in waiting)]
        self.in_flight = 0
        return lost

    def observe(self, now_s: float) -> None:
        """Measure demand, as the real worker's pulse does."""
        users = {self.digests[adapter]: n for adapter, n in self.users.items()}
        number = {self.digests[adapter]: adapter for adapter in self.host}
        changed = self.meter.observe(users, self.in_flight, self.size.rows, now_s)
        self.changed.update(number[digest] for digest in changed if digest in number)

    def record(self, lease_expire_time_s: float) -> WorkerRecord:
        """Record that a heartbeat reports."""
        load = ReportedLoad(
            running_sequences=len(self.running),
            waiting_sequences=self.in_flight - len(self.running),
            max_sequences=self.size.rows,
            mean_in_flight=self.meter.mean_in_flight,
            slots_each=self._held_slots / len(self.host) if self.host and self.slots_of else 0.0,
        )
        return WorkerRecord(self.info, self.state, load, lease_expire_time_s, 1)

    def resident(self, adapter: int) -> Resident:
        """Entry of a residency report for an adapter that is here."""
        tier = Tier.SLOT if adapter in self.slots else Tier.HOST
        digest = self.digests[adapter]
        num_slots = self.slots_of[adapter] if self.slots_of else 0
        return Resident(digest, tier, demand=self.meter.reported(digest), num_slots=num_slots)

    def _load_next(self, now_s: float) -> None:
        while self.load_queue and self.num_loading < self.size.parallel_loads:
            adapter = self.load_queue.popleft()
            self.num_loading += 1
            self.at(now_s + STORE_LOAD_S * self._slots(adapter), lambda t, adapter=adapter: self._loaded(adapter, t))  # type: ignore[misc]

    def _loaded(self, adapter: int, now_s: float) -> None:
        if not self.is_alive:
            return
        self.num_loading -= 1
        self._make_room(self._slots(adapter))
        requests = self.loading.pop(adapter)
        self.host[adapter] = None
        self._held_slots += self._slots(adapter)
        self.users[adapter] = len(requests)
        self.changed.add(adapter)
        self.on_resident(self, adapter, True)
        for request in requests:
            self._queue(request, now_s)
        self._load_next(now_s)

    def _slots(self, adapter: int) -> int:
        return self.slots_of[adapter] if self.slots_of else 1

    def _make_room(self, needed: int) -> None:
        while self._held_slots + needed > self.size.host_adapters:
            victim = next((adapter for adapter in self.host if adapter not in self.users), None)
            if victim is None:
                return
            del self.host[victim]
            self._held_slots -= self._slots(victim)
            self.slots.pop(victim, None)
            self.changed.add(victim)
            self.on_resident(self, victim, False)

    def _queue(self, request: Request, now_s: float) -> None:
        if len(self.running) < self.size.rows:
            self._start(request, now_s)
        else:
            self.waiting.append(request)

    def _start(self, request: Request, now_s: float) -> None:
        self.running.add(request)
        adapter = request.adapter
        if adapter not in self.slots:
            while sum(map(self._slots, self.slots)) + self._slots(adapter) > self.size.slots:
                # There are more slots than the rows can use, so some of them have no user.
                running = {r.adapter for r in self.running}
                idle = next(a for a in self.slots if a not in running)
                del self.slots[idle]
                self.changed.add(idle)
            self.changed.add(adapter)
            now_s += ACTIVATE_S
        self.slots[adapter] = None
        self.slots.move_to_end(adapter)
        self.on_start(request, now_s)
        self.at(now_s + request.service_s, lambda t: self._finish(request, t))

    def _finish(self, request: Request, now_s: float) -> None:
        if not self.is_alive:
            return
        self.count(now_s)
        self.in_flight -= 1
        self.running.discard(request)
        self.users[request.adapter] -= 1
        if not self.users[request.adapter]:
            del self.users[request.adapter]
        if self.waiting:
            self._start(self.waiting.popleft(), now_s)
