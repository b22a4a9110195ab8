"""A worker's life: alive at once, ready when its model is, gone without losing a request."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import TypeVar

import structlog

from shared.base_spec import BaseSpec
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.records import WorkerInfo
from shared.coordination.registration import WorkerRegistration
from shared.errors import HotslotError
from shared.ids import new_worker_id
from shared.pb.hotslot.worker.v1 import adapter_control_pb2, adapter_control_pb2_grpc, inference_pb2, inference_pb2_grpc
from shared.rpc.channel import open_channel
from shared.rpc.server import RpcServer, ServerOptions, serve, service, stop_signal
from shared.telemetry import bind_log_context
from worker_service.adapters.references import ReferenceLimits
from worker_service.adapters.store_client import StoreClient
from worker_service.assembly import AssemblyOptions, ServableModel, assemble
from worker_service.front.control_servicer import AdapterControlServicer
from worker_service.front.inference_servicer import InferenceServicer
from worker_service.front.worker import Parts, Worker
from worker_service.pulse import Pulse
from worker_service.settings import WorkerSettings

log = structlog.get_logger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
EXECUTOR_THREADS = 2
MAX_MESSAGE_BYTES = 4 * 2**20
"""Requests are decoded on the event loop, so a large one holds up everybody."""
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 15.0

T = TypeVar("T")


async def run(settings: WorkerSettings, load: Callable[[], ServableModel]) -> int:
    """Serve until a signal comes; returns the exit code. `load` is heavy and called on a thread."""
    worker = Worker(new_worker_id())
    bind_log_context(worker_id=worker.worker_id)
    options = ServerOptions(
        address=settings.listen, max_message_bytes=MAX_MESSAGE_BYTES, grace_s=settings.drain_grace_s
    )
    services = [
        service(
            inference_pb2,
            "InferenceService",
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            InferenceServicer(worker),
        ),
        service(
            adapter_control_pb2,
            "AdapterControlService",
            adapter_control_pb2_grpc.add_AdapterControlServiceServicer_to_server,
            AdapterControlServicer(worker),
        ),
    ]
    async with serve(services, options) as server, AsyncExitStack() as stack:
        signalled = asyncio.create_task(stop_signal())
        started = asyncio.create_task(_start(settings, load, worker, server, stack))
        await asyncio.wait([signalled, started], return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            await asyncio.wait([started])
            return EXIT_OK
        try:
            registration = started.result()
        except HotslotError as exc:
            log.error("start_failed", why=exc.message)
            return EXIT_FAILED
        fenced = asyncio.create_task(_fenced(registration))
        died = asyncio.create_task(worker.parts.engine.died.wait())
        await asyncio.wait([signalled, fenced, died], return_when=asyncio.FIRST_COMPLETED)
        await _leave(settings, worker, server)
        return EXIT_FAILED if fenced.done() or died.done() else EXIT_OK


async def _start(
    settings: WorkerSettings,
    load: Callable[[], ServableModel],
    worker: Worker,
    server: RpcServer,
    stack: AsyncExitStack,
) -> WorkerRegistration | None:
    """Load the model, start what serves it, and become ready. What was started ends with the stack."""
    model = await _in_thread(load)
    channel = await stack.enter_async_context(open_channel(settings.store))
    executor = stack.enter_context(ThreadPoolExecutor(EXECUTOR_THREADS, "adapters"))
    parts, engine, store = assemble(
        model,
        worker.worker_id,
        channel,
        executor,
        AssemblyOptions(
            host_cache_bytes=settings.host_cache_bytes,
            max_parallel_loads=settings.max_parallel_loads,
            references=ReferenceLimits(staleness_s=settings.staleness_s),
        ),
    )
    engine.start()
    stack.callback(engine.stop)
    stack.push_async_callback(parts.provider.close)
    registering = asyncio.create_task(_register_base_model(store, model.spec))
    stack.callback(registering.cancel)
    worker.become_ready(parts)
    registration = await _register_worker(settings, worker, parts, server, stack)
    await server.set_ready(True)
    log.info("ready", base_model=model.spec.name, digest=model.spec.digest, port=server.port)
    return registration


async def _register_base_model(store: StoreClient, spec: BaseSpec) -> None:
    """Make the base model known to the store, however long that takes; serving does not wait for it."""
    retry_s = FIRST_RETRY_S
    while True:
        try:
            await store.register_base_model(spec)
        except HotslotError as exc:
            log.warning("base_model_not_registered", why=exc.message, retry_s=retry_s)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, MAX_RETRY_S)
        else:
            log.info("base_model_registered", base_model=spec.name, digest=spec.digest)
            return


async def _register_worker(
    settings: WorkerSettings, worker: Worker, parts: Parts, server: RpcServer, stack: AsyncExitStack
) -> WorkerRegistration | None:
    """Begin to watch the engine and, with a Redis, to be known to others."""
    health: set[asyncio.Task[None]] = set()

    def on_health(healthy: bool) -> None:
        task = asyncio.create_task(server.set_ready(healthy))
        health.add(task)
        task.add_done_callback(health.discard)

    pulse = await stack.enter_async_context(Pulse(worker, parts, on_health))
    if settings.redis_url is None:
        return None
    connection = await stack.enter_async_context(RedisConnection(RedisOptions(settings.redis_url.value)))
    info = WorkerInfo(
        worker_id=worker.worker_id,
        endpoint=settings.advertise or _reachable(settings.listen, server.port),
        base_model_digest=parts.info.base_model_digest,
        base_model=parts.info.base_model,
        dtype=parts.info.dtype,
        slot_rank=parts.info.slot_rank,
        start_time_s=worker.start_time_s,
        # Of two starts on one endpoint the later one is right.
        epoch=time.time_ns() // 1_000_000,
    )
    registration = WorkerRegistration(connection, info, pulse.report, lease_s=settings.lease_s)
    leased = AsyncExitStack()
    await leased.enter_async_context(registration)
    stack.push_async_callback(leased.aclose)
    pulse.on_change = registration.nudge
    worker.on_retire = leased.aclose
    return registration


async def _leave(settings: WorkerSettings, worker: Worker, server: RpcServer) -> None:
    """Be picked no more, let others notice, then finish what runs."""
    await server.set_ready(False)
    await worker.retire()
    await asyncio.sleep(settings.drain_delay_s)
    await server.stop()


async def _fenced(registration: WorkerRegistration | None) -> None:
    """Return when this worker must end because a newer start took its place."""
    if registration is None:
        await asyncio.Event().wait()
    else:
        await registration.until_fenced()


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


def _reachable(listen: str, port: int) -> str:
    """The address to give to others: a wildcard is replaced by this machine's name."""
    host = listen.rpartition(":")[0]
    return f"{socket.gethostname() if host in ('', '0.0.0.0', '[::]', '*') else host}:{port}"
