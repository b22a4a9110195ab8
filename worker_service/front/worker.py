"""The worker as its servicers see it: who it is, what state it is in, and the parts that do the work."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace

import structlog

from hotslot.contract.control import CompiledBucket, ModelInfo, StartupStage, WorkerState, WorkerStatus
from hotslot.contract.moments import moment
from hotslot.errors import (
    ConflictError,
    DrainingError,
    EngineFailedError,
    HotslotError,
    RequestDeadlineError,
    UnavailableError,
)
from hotslot.ids import WorkerId
from hotslot.rpc.server_facts import installed_version
from shared.loops import first_of
from worker_service.adapters.catalog_watch import CatalogWatch
from worker_service.adapters.control import AdapterControl
from worker_service.adapters.policy import AdapterDefaults
from worker_service.adapters.provider import AdapterProvider
from worker_service.engine.handle import EngineHandle
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.front.counting import TokenCounting
from worker_service.front.generation import Generation
from worker_service.front.status import arena_status, graph_status, kv_status, queue_status, slot_status
from worker_service.pinned_arena import PinnedArena
from worker_service.routing.router import Router

log = structlog.get_logger(__name__)

STARTING_RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class ServingParts:
    """Parts of a worker that exist once the model is loaded."""

    info: ModelInfo
    generation: Generation
    counting: TokenCounting
    control: AdapterControl
    policy: AdapterDefaults
    provider: AdapterProvider
    watch: CatalogWatch
    engine: EngineHandle
    buckets: tuple[CompiledBucket, ...] = ()
    startup: tuple[StartupStage, ...] = ()
    arena: PinnedArena | None = None
    """Host memory that the device copies adapters from; None where it reads the host's own."""


async def _nothing() -> None:
    """End the membership of a worker without a fleet."""


@dataclass(slots=True)
class ServingWorker:
    """State and parts; belongs to one event loop."""

    worker_id: WorkerId
    turned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the worker was drained or taken back into service, and when its engine fell silent or went on."""
    start_time_s: float = field(default_factory=time.time)
    version: str = field(default_factory=installed_version)
    in_flight: int = 0
    engine_is_silent: bool = False
    """True if the engine hangs, as far as is known: then the worker takes no requests itself."""
    last_snapshot: EngineSnapshot | None = None
    """The engine as it was when it last answered the pulse."""
    router: Router | None = None
    """The way to other workers, once there is one; without it, everything is served here."""
    _parts: ServingParts | None = None
    _leave: Callable[[], Awaitable[None]] = _nothing
    _retiring: "asyncio.Task[None] | None" = None
    _undrained: asyncio.Event | None = None
    """Set when the drain that is in force ends; None while there is none."""
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._idle.set()

    @property
    def state(self) -> WorkerState:
        """State of the worker; goes back when an engine that hung goes on, and when a drain ends."""
        if self._retiring is not None or self.engine_is_silent or self.is_drained:
            return WorkerState.DRAINING
        return WorkerState.STARTING if self._parts is None else WorkerState.READY

    @property
    def is_drained(self) -> bool:
        """True if it takes no requests because of a drain."""
        return self._undrained is not None

    @property
    def refusal(self) -> HotslotError | None:
        """Error for new requests while the worker takes none itself; None while it does."""
        if self.is_drained:
            return DrainingError(self.worker_id)
        if self.engine_is_silent:
            return EngineFailedError(f"the engine of worker {self.worker_id} does not answer; call another worker")
        return None

    @property
    def parts(self) -> ServingParts:
        """The parts; raises UnavailableError while the model is being loaded."""
        if self._parts is None:
            raise UnavailableError(
                f"worker {self.worker_id} is starting: its model is being loaded and compiled; try again",
                retry_after_s=STARTING_RETRY_AFTER_S,
            )
        return self._parts

    def base_model_name(self) -> str:
        """Name of the base model; empty while it is being loaded."""
        return self._parts.info.base_model if self._parts is not None else ""

    @property
    def is_started(self) -> bool:
        """True if its model is loaded."""
        return self._parts is not None

    def become_ready(
        self, parts: ServingParts, router: Router | None = None, leave: Callable[[], Awaitable[None]] = _nothing
    ) -> None:
        """Take requests: the model is loaded. `leave` ends the membership in the fleet when the worker retires."""
        self._parts, self.router, self._leave = parts, router, leave

    def hear_engine(self, snapshot: EngineSnapshot | None) -> None:
        """Note how the engine answered the pulse; None for in vain."""
        if snapshot is not None:
            self.last_snapshot = snapshot
        if self.engine_is_silent is not (snapshot is None):
            self.engine_is_silent = snapshot is None
            self.turned.set()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[ServingParts]:
        """Count a request while it runs. Raises `refusal`, and UnavailableError while starting."""
        refusal = self.refusal
        if refusal is not None:
            raise refusal
        parts = self.parts
        self.in_flight += 1
        self._idle.clear()
        try:
            yield parts
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def retire(self) -> None:
        """Tell the world that the worker is leaving. Requests that come all the same are still served."""
        if self._retiring is None:
            log.info("retiring", in_flight=self.in_flight)
            self._retiring = asyncio.ensure_future(self._leave())
        await asyncio.shield(self._retiring)

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, and wait until those that run have ended; again waits for the same.

        Raises RequestDeadlineError when some still run after the timeout, and the worker stays drained; ConflictError
        when the drain is called off meanwhile.
        """
        undrained = self._undrained
        if undrained is None:
            log.info("drained", in_flight=self.in_flight)
            undrained = self._undrained = asyncio.Event()
            self.turned.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await first_of(self._idle.wait(), undrained.wait())
        if undrained.is_set():
            raise ConflictError(f"worker {self.worker_id} was undrained while the drain waited for running requests")
        if not self._idle.is_set():
            running = f"worker {self.worker_id} still runs {self.in_flight} requests"
            raise RequestDeadlineError(f"{running}; it stays draining until it is undrained")

    def undrain(self) -> None:
        """Take requests again; a drain that still waits ends. Raises DrainingError when the worker is leaving."""
        if self._retiring is not None:
            raise DrainingError(self.worker_id)
        if self._undrained is not None:
            log.info("undrained")
            self._undrained.set()
            self._undrained = None
            self.turned.set()

    def _why(self) -> str:
        """Reason why it takes no requests itself; empty while it does."""
        if self._retiring is not None:
            return f"it was told to end, and finishes {self.in_flight} requests"
        if self.is_drained:
            return f"it was drained, and finishes {self.in_flight} requests" if self.in_flight else "it was drained"
        if self.engine_is_silent:
            return "its engine does not answer"
        return "" if self._parts is not None else "its model is being loaded and compiled"

    async def status(self) -> WorkerStatus:
        """The worker's state now; works at any time. An engine that hangs is shown as it was before."""
        parts, snapshot = self._parts, self.last_snapshot
        if parts is not None and not self.engine_is_silent:
            snapshot = await parts.provider.tiers.inspect()
        status = WorkerStatus(
            worker_id=self.worker_id,
            state=self.state,
            start_time=moment(self.start_time_s),
            drained=self.is_drained,
            why=self._why(),
            version=self.version,
        )
        if parts is not None:
            status = replace(
                status,
                base_model_digest=parts.info.base_model_digest,
                buckets=parts.buckets,
                startup=parts.startup,
                arena=arena_status(parts.arena),
            )
        if snapshot is None:
            return status
        return replace(
            status,
            recompiles=snapshot.recompiles,
            slots=slot_status(snapshot),
            kv=kv_status(snapshot),
            queue=queue_status(snapshot, parts.provider.tiers.num_loading if parts is not None else 0),
            steps=snapshot.steps,
            generated_tokens=snapshot.generated_tokens,
            activations=snapshot.activations,
            longest_stall_s=snapshot.longest_stall_s,
            graphs=graph_status(snapshot),
        )
