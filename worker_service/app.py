"""A worker's life: alive at once, ready when its model is, gone without losing a request."""

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import structlog

from hotslot.endpoints import reachable
from hotslot.errors import HotslotError, InternalError
from hotslot.formats.base_spec import BaseSpec
from hotslot.ids import new_worker_id, parse_tenant
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2, adapter_control_pb2_grpc, inference_pb2
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.rpc.message_sizes import MAX_GENERATE_BYTES
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from shared.coordination.known_pool import KnownPool
from shared.failed_start import EXIT_FAILED
from shared.fleet.records import WorkerInfo
from shared.server.grpc_server import RpcServer, ServerOptions, Service, serve, service, stop_signal
from shared.telemetry import bind_log_context
from worker_service.adapters.catalog_watch import CatalogWatch
from worker_service.adapters.disk_tier import DiskOptions
from worker_service.adapters.keeper import Keeper, Pool
from worker_service.adapters.preload import PreloadLimits, preload
from worker_service.adapters.references import ReferenceLimits
from worker_service.adapters.store_client import StoreClient
from worker_service.assembly import AssemblyOptions, ServableModel, assemble
from worker_service.compiled_code.archive import Archiver
from worker_service.compiled_code.sharing import CodeSharing, CodeStore
from worker_service.ending import EXIT_OK, Ending
from worker_service.engine.limits import EnginePolicy
from worker_service.front.control_servicer import AdapterControlServicer
from worker_service.front.door import FrontDoor
from worker_service.front.inference_servicer import InferenceServicer, add_inference_servicer
from worker_service.front.worker import Parts, Worker
from worker_service.joining import Joining, described, until_it_works
from worker_service.model.shared_code import SharedCode
from worker_service.pulse import Pulse
from worker_service.routing.fleet_view import FleetView, ViewLimits
from worker_service.routing.forwarding import open_peers
from worker_service.routing.router import Router
from worker_service.settings import WorkerSettings

log = structlog.get_logger(__name__)

EXECUTOR_THREADS = 2
MIN_PEER_KEEPALIVE_S = 4.0
"""A worker that is merely busy answers within half of it."""

T = TypeVar("T")
LoadModel = Callable[[SharedCode | None], ServableModel]


async def run(settings: WorkerSettings, describe: Callable[[], BaseSpec], load: LoadModel) -> Ending:
    """Serve until a signal comes; returns how the process is to end.

    Both functions are called on a thread: `describe` says quickly which base model it is, `load` is heavy.
    """
    worker = Worker(new_worker_id())
    bind_log_context(worker_id=worker.worker_id)
    door, ending = FrontDoor(worker), Ending()
    options = ServerOptions(
        address=settings.listen,
        max_request_bytes=MAX_GENERATE_BYTES,
        max_connection_age_s=settings.max_connection_age_s,
        drain_delay_s=settings.drain_delay_s,
        grace_s=settings.drain_grace_s,
        stall_s=settings.stream_stall_s,
    )
    async with serve(services(worker, door), options) as server, AsyncExitStack() as stack:
        signalled = asyncio.create_task(stop_signal())
        starting = asyncio.create_task(Start(settings, worker, door, server, stack, ending).run(describe, load))
        await asyncio.wait([signalled, starting], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            return Ending(EXIT_OK, leaves_threads=True)  # The model may be being loaded or compiled.
        try:
            joining = starting.result()
        except HotslotError as exc:
            log.error("start_failed", why=exc.message)
            ending.failure = exc
            return ending
        fenced = asyncio.create_task(_fenced(joining))
        lost = asyncio.create_task(worker.parts.engine.lost.wait())
        await asyncio.wait([signalled, fenced, lost], return_when=asyncio.FIRST_COMPLETED)
        # Be picked no more, and serve what still comes until others have noticed.
        await server.set_ready(False)
        await worker.retire()
        await server.stop(at_once=lost.done())
        ending.code = EXIT_FAILED if fenced.done() or lost.done() else EXIT_OK
    return ending


def services(worker: Worker, door: FrontDoor) -> list[Service]:
    """What a worker serves."""
    return [
        service(inference_pb2, "InferenceService", add_inference_servicer, InferenceServicer(worker, door)),
        service(
            adapter_control_pb2,
            "AdapterControlService",
            adapter_control_pb2_grpc.add_AdapterControlServiceServicer_to_server,
            AdapterControlServicer(worker),
        ),
    ]


@dataclass(slots=True)
class Start:
    """From settings to a worker that is ready. All that is started ends with the stack."""

    settings: WorkerSettings
    worker: Worker
    door: FrontDoor
    server: RpcServer
    stack: AsyncExitStack
    ending: Ending = field(default_factory=Ending)
    view_limits: ViewLimits = field(default_factory=ViewLimits)

    async def run(self, describe: Callable[[], BaseSpec], load: LoadModel) -> Joining | None:
        """Join as starting, load the model, start what serves it, and become ready."""
        settings, worker, stack = self.settings, self.worker, self.stack
        spec = await _in_thread(describe)
        options = ChannelOptions(use_proxy=settings.use_proxy)
        channel = await stack.enter_async_context(open_channel(settings.store, options))
        store = StoreClient(channel, spec.digest)
        registering = asyncio.create_task(_register_base_model(store, spec))
        stack.callback(registering.cancel)
        ties = await self._join(store, spec)
        shared_code = self._shared_code(channel)
        model = await _in_thread(lambda: load(shared_code))
        if model.spec.digest != spec.digest:
            raise InternalError(f"the model's folder changed while it was loaded: {spec.digest} to {model.spec.digest}")
        executor = stack.enter_context(ThreadPoolExecutor(EXECUTOR_THREADS, "adapters"))
        parts, engine = assemble(
            model,
            worker.worker_id,
            store,
            executor,
            AssemblyOptions(
                host_cache_bytes=settings.host_cache_bytes,
                max_parallel_loads=settings.max_parallel_loads,
                disk=_disk(settings),
                references=ReferenceLimits(staleness_s=settings.staleness_s),
                engine_silence_s=settings.engine_silence_s,
                engine=EnginePolicy(
                    prefix_cache=settings.prefix_cache,
                    share_base_prefixes=settings.share_base_prefixes,
                    ageing_s=settings.ageing_s,
                ),
            ),
        )
        watch = CatalogWatch(store, parts.provider.references)
        parts.provider.references.is_watched, parts.provider.references.on_answer = watch.is_live, watch.note
        stack.push_async_callback(watch.close)
        engine.start(parts.engine.on_events, parts.engine.on_death)
        stack.callback(self.ending.stop, engine, parts.engine.lost)
        stack.push_async_callback(parts.provider.close)
        encoder = parts.generation.encoder
        stack.callback(encoder.close)
        preparing = asyncio.create_task(encoder.prepare())
        stack.callback(preparing.cancel)
        await self._be_known(parts, ties, store, watch)
        await self._tell_readiness()
        log.info("ready", base_model=spec.name, digest=spec.digest, port=self.server.port)
        return ties.joining if ties is not None else None

    async def _tell_readiness(self) -> None:
        """Say over the health service whether the worker takes requests itself."""
        await self.server.set_ready(self.worker.refusal is None)

    def _shared_code(self, channel: grpc.aio.Channel) -> CodeSharing | None:
        """Who brings and takes compiled code, where the settings want that."""
        settings = self.settings
        if settings.share_compiled_code == "off" or settings.cache_dir is None:
            return None
        secret = settings.compiled_code_secret.get_secret_value().encode()
        archiver = Archiver(settings.cache_dir, settings.max_compiled_code_bytes, secret)
        store = CodeStore(channel, parse_tenant(settings.compiled_code_tenant))
        uploads = settings.share_compiled_code == "fetch-and-upload"
        sharing = CodeSharing(store, archiver, uploads, asyncio.get_running_loop())
        self.stack.push_async_callback(sharing.close)
        return sharing

    async def _join(self, store: StoreClient, spec: BaseSpec) -> "_Ties | None":
        """With a Redis, begin to be known to others."""
        settings = self.settings
        if settings.redis_url is None:
            return None
        connection = await self.stack.enter_async_context(RedisConnection(RedisOptions(settings.redis_url.value)))
        info = WorkerInfo(
            worker_id=self.worker.worker_id,
            endpoint=settings.advertise or str(reachable(settings.listen, self.server.port, socket.gethostname())),
            base_model_digest=spec.digest,
            base_model=spec.name,
            dtype=settings.dtype,
            slot_rank=settings.slot_rank,
            start_time_s=self.worker.start_time_s,
            epoch=0,
        )
        joining = Joining(connection, info, store.issue_epoch, lease_s=settings.lease_s)
        await self.stack.enter_async_context(joining)
        self.worker.on_retire = joining.leave
        return _Ties(Directory(connection), joining, info)

    async def _be_known(self, parts: Parts, ties: "_Ties | None", store: StoreClient, watch: CatalogWatch) -> None:
        """Watch the engine, tell others of it, and take requests."""
        telling: set[asyncio.Task[None]] = set()

        def tell_readiness() -> None:
            task = asyncio.create_task(self._tell_readiness())
            telling.add(task)
            task.add_done_callback(telling.discard)

        def on_turn() -> None:
            tell_readiness()
            pulse.on_change()

        pulse = await self.stack.enter_async_context(Pulse(self.worker, parts, lambda _: tell_readiness()))
        self.worker.on_turn = on_turn
        limits = PreloadLimits(self.settings.preload_s, self.settings.host_cache_bytes // 2)
        if ties is None:
            keeper = Keeper(store, parts.provider, watch, self.worker.worker_id, None, limits)
            await self.stack.enter_async_context(keeper)
            self.worker.become_ready(parts)
            return
        info = described(ties.info, parts.info)
        pool = KnownPool(ties.directory, info.base_model_digest, on_loss=ties.joining.nudge)
        if self.settings.forward:
            keepalive_s = max(MIN_PEER_KEEPALIVE_S, self.settings.lease_s / 2)
            peers = open_peers(keepalive_s, use_proxy=self.settings.use_proxy)
            router = Router(FleetView(pool, info, peers.retain, self.view_limits), peers)
            self.stack.push_async_callback(router.close)
            self.door.router = router
        keeper = Keeper(store, parts.provider, watch, info.worker_id, Pool(pool, info), limits)
        await self.stack.enter_async_context(keeper)
        await preload(ties.directory, info, parts.provider, limits)
        self.worker.become_ready(parts)
        pulse.on_change = ties.joining.nudge
        ties.joining.observe = pulse.report
        ties.joining.describe(info)


@dataclass(frozen=True, slots=True)
class _Ties:
    """What ties a worker to its fleet."""

    directory: Directory
    joining: Joining
    info: WorkerInfo


def _disk(settings: WorkerSettings) -> DiskOptions | None:
    folder = settings.disk_cache_dir
    return DiskOptions(folder, settings.disk_cache_bytes) if folder is not None else None


async def _register_base_model(store: StoreClient, spec: BaseSpec) -> None:
    """Make the base model known to the store, however long that takes; serving does not wait for it."""
    await until_it_works(lambda: store.register_base_model(spec), "base_model_not_registered")
    log.info("base_model_registered", base_model=spec.name, digest=spec.digest)


async def _fenced(joining: Joining | None) -> None:
    """Return when this worker must end because a newer start took its place."""
    if joining is None:
        await asyncio.Event().wait()
    else:
        await joining.until_fenced()


async def _in_thread(function: Callable[[], T]) -> T:
    """Run on a thread that does not keep the process alive: a compilation cannot be interrupted."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if outcome.done() else set_outcome())

    def call() -> None:
        try:
            result = function()
        except Exception as exc:  # noqa: BLE001 (handed over)
            # A future refuses StopIteration, and the start would wait for ever.
            failure = RuntimeError(f"stray {exc!r}") if isinstance(exc, StopIteration) else exc
            settle(lambda: outcome.set_exception(failure))
        else:
            settle(lambda: outcome.set_result(result))

    threading.Thread(target=call, name="load model", daemon=True).start()
    return await outcome
