"""A worker's start, top to bottom: known as starting, its model loaded, its parts built one on the other, ready."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import grpc
import structlog

from hotslot.contract.control import ModelInfo
from hotslot.endpoints import reachable
from hotslot.errors import InternalError
from hotslot.formats.base_spec import BaseSpec
from hotslot.ids import parse_tenant
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.tracing import is_traced
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from shared.coordination.known_pool import KnownPool
from shared.coordination.member import FleetMember
from shared.coordination.seals import seals_of
from shared.fleet.policy import Fleet
from shared.fleet.records import WorkerInfo
from shared.loops import Loops, until_it_works
from shared.metrics.calls import ClientCalls
from shared.metrics.exposition import Readings
from shared.quotas.rates import Rates
from shared.server.grpc_server import RpcServer
from shared.server.transport import check_dialled
from worker_service.adapters.coming import Arrivals
from worker_service.adapters.disk_tier import DiskOptions
from worker_service.adapters.keeper import Keeper, read_fleet
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.adapters.preload import PreloadLimits, preload
from worker_service.adapters.store_client import StoreView
from worker_service.adapters.told_uses import EVERY_S as TELL_EVERY_S
from worker_service.adapters.told_uses import ToldUses
from worker_service.assembly import AssemblyOptions, ServableModel, assemble
from worker_service.compiled_code.archive import Archiver
from worker_service.compiled_code.sharing import CodeSharing, CodeStore
from worker_service.ending import ProcessEnding
from worker_service.engine.kept_reports import KeptReports
from worker_service.engine.limits import EnginePolicy
from worker_service.engine.numbers import EngineNumbers
from worker_service.front.worker import ServingParts, ServingWorker
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


@dataclass(frozen=True, slots=True)
class Host:
    """Frame in which a worker is built: its parts end with the stack, its loops before them."""

    settings: WorkerSettings
    worker: ServingWorker
    server: RpcServer
    stack: AsyncExitStack
    loops: Loops
    ending: ProcessEnding
    view_limits: ViewLimits = field(default_factory=ViewLimits)
    sources: list[Readings] = field(default_factory=list)
    """Numbers of its parts, for its metrics."""
    calls: ClientCalls = field(default_factory=ClientCalls)
    """Calls to the store and to other workers."""
    rates: Rates | None = None
    """Tokens that tenants may use in a minute; None limits nobody."""


@dataclass(frozen=True, slots=True)
class FleetTies:
    """Ties of a worker to its fleet."""

    directory: Directory
    member: FleetMember
    info: WorkerInfo


async def start(host: Host, describe: Callable[[], BaseSpec], load: LoadModel) -> None:
    """Join as starting, load the model, start what serves it, and become ready."""
    worker, loops = host.worker, host.loops
    spec = await _in_thread(describe)
    channel = await build_store_channel(host)
    store = StoreView(channel, spec.digest)
    host.sources.append(store.resolves.readings)
    loops.restarted("register base model", lambda: register_base_model(store, spec))
    pulse = Pulse(worker)
    ties = await build_fleet_ties(host, spec, store, pulse)
    shared_code = build_shared_code(host, channel)
    model = await _in_thread(lambda: load(shared_code))
    if model.spec.digest != spec.digest:
        raise InternalError(f"the model's folder changed while it was loaded: {spec.digest} to {model.spec.digest}")
    parts = build_parts(host, model, store)
    worker.hear_engine(await parts.provider.tiers.inspect())
    if ties is None:
        await build_keeper(host, parts, store, None)
        worker.become_ready(parts)
    else:
        info = described(ties.info, parts.info)
        pool = KnownPool(ties.directory, info.base_model_digest, on_loss=ties.member.nudge)
        router = build_router(host, pool, info)
        await build_keeper(host, parts, store, partial(read_fleet, pool, info))
        await preload(ties.directory, info, parts.provider, preload_limits(host.settings))
        worker.become_ready(parts, router, ties.member.leave)
        ties.member.describe(info)
    nudge = ties.member.nudge if ties is not None else _nothing
    loops.essential("pulse", lambda: pulse.run(parts.engine, nudge))
    await host.server.set_ready(worker.refusal is None)
    loops.essential("readiness", lambda: tell_readiness(worker, host.server, nudge))
    log.info("ready", base_model=spec.name, digest=spec.digest, port=host.server.port)


async def build_store_channel(host: Host) -> grpc.aio.Channel:
    """The connection to the store."""
    settings = host.settings
    security = settings.channel_security()
    check_dialled(settings.store, uses_tls=security.uses_tls, insecure=settings.insecure)
    options = ChannelOptions(use_proxy=settings.use_proxy, security=security, hearer=host.calls)
    return await host.stack.enter_async_context(open_channel(settings.store, options))


async def build_fleet_ties(host: Host, spec: BaseSpec, store: StoreView, pulse: Pulse) -> FleetTies | None:
    """With a Redis, begin to be known to others."""
    settings, worker = host.settings, host.worker
    if settings.redis_url is None:
        return None
    redis = await host.stack.enter_async_context(RedisConnection(RedisOptions.of(settings.redis_url, settings)))
    info = WorkerInfo(
        worker_id=worker.worker_id,
        endpoint=settings.advertise or str(reachable(settings.listen, host.server.port, socket.gethostname())),
        base_model_digest=spec.digest,
        base_model=spec.name,
        dtype=settings.dtype,
        slot_rank=settings.slot_rank,
        start_time_s=worker.start_time_s,
        epoch=0,
    )
    seals = seals_of(settings.redis_url, settings)
    member = FleetMember(redis, info, store.issue_epoch, pulse.report, lease_s=settings.lease_s, seals=seals)
    host.sources.extend((redis.readings, member.readings))
    host.loops.essential("fleet member", member.run, member.leave)
    return FleetTies(Directory(redis, seals), member, info)


def build_shared_code(host: Host, channel: grpc.aio.Channel) -> CodeSharing | None:
    """Sharing of compiled code, where the settings want that."""
    settings = host.settings
    if settings.share_compiled_code == "off" or settings.cache_dir is None:
        return None
    archiver = Archiver.of(settings, settings.cache_dir)
    store = CodeStore(channel, parse_tenant(settings.compiled_code_tenant))
    uploads = settings.share_compiled_code == "fetch-and-upload"
    sharing = CodeSharing(store, archiver, uploads, asyncio.get_running_loop())
    host.stack.push_async_callback(sharing.close)
    return sharing


def build_parts(host: Host, model: ServableModel, store: StoreView) -> ServingParts:
    """The engine, running, and what serves requests with it."""
    settings, stack = host.settings, host.stack
    folder = settings.disk_cache_dir
    numbers = EngineNumbers([bucket.num_tokens for bucket in model.buckets]) if settings.metrics_listen else None
    if numbers is not None:
        host.sources.append(numbers.readings)
    options = AssemblyOptions(
        listener=numbers,
        reports=KeptReports(numbers) if is_traced() else None,
        host_cache_bytes=settings.host_cache_bytes,
        max_parallel_loads=settings.max_parallel_loads,
        disk=DiskOptions(folder, settings.disk_cache_bytes) if folder is not None else None,
        references=ReferenceLimits(
            staleness_s=settings.staleness_s, shared_unconfirmed_s=settings.shared_unconfirmed_s
        ),
        engine_silence_s=settings.engine_silence_s,
        rates=host.rates,
        engine=EnginePolicy(
            prefix_cache=settings.prefix_cache,
            share_base_prefixes=settings.share_base_prefixes,
            ageing_s=settings.ageing_s,
        ),
    )
    executor = stack.enter_context(ThreadPoolExecutor(EXECUTOR_THREADS, "adapters"))
    parts, engine = assemble(model, host.worker.worker_id, store, executor, options)
    engine.start(parts.engine.on_events, parts.engine.on_death)
    stack.callback(host.ending.stop, engine, parts.engine.lost)
    stack.push_async_callback(parts.provider.close)
    if parts.generation.engine_spans is not None:
        stack.callback(parts.generation.engine_spans.close)
    encoder = parts.generation.encoder
    stack.callback(encoder.close)
    host.loops.restarted("prepare the tokenizer", encoder.prepare)
    return parts


def build_router(host: Host, pool: KnownPool, me: WorkerInfo) -> Router | None:
    """The way to other workers, where the settings want that."""
    settings = host.settings
    if not settings.forward:
        return None
    keepalive_s = max(MIN_PEER_KEEPALIVE_S, settings.lease_s / 2)
    security = settings.channel_security().for_workers()
    peers = open_peers(keepalive_s, use_proxy=settings.use_proxy, security=security, hearer=host.calls)
    router = Router(FleetView(pool, me, peers.retain, host.view_limits), peers)
    host.sources.append(router.readings)
    host.stack.push_async_callback(router.close)
    return router


async def build_keeper(
    host: Host, parts: ServingParts, store: StoreView, fleet: Callable[[], Awaitable[Fleet]] | None
) -> None:
    """Follow the catalog and keep pinned versions here, from the first look on."""
    keeper = Keeper(store, parts.provider, host.worker.worker_id, fleet, preload_limits(host.settings))
    references = parts.provider.references
    arrivals = Arrivals(references, parts.provider.tiers)
    host.loops.restarted("bring coming versions", arrivals.run)
    host.loops.restarted("watch the catalog", lambda: parts.watch.run(references, keeper.hear, first=arrivals.hear))
    host.loops.restarted("keep pinned versions", keeper.run)
    uses = ToldUses(store.resolve, parts.provider.tiers.holdings, parts.policy)
    host.loops.repeated("tell of what is pinned", TELL_EVERY_S, uses.tell)
    await keeper.until_looked()


def preload_limits(settings: WorkerSettings) -> PreloadLimits:
    """Limits of a preload: its time of the start, its share of host memory."""
    return PreloadLimits(settings.preload_s, settings.host_cache_bytes // 2)


async def tell_readiness(worker: ServingWorker, server: RpcServer, nudge: Callable[[], None]) -> None:
    """Say over the health service, and to the fleet, whether the worker takes requests, whenever that may change."""
    while True:
        await worker.turned.wait()
        worker.turned.clear()
        await server.set_ready(worker.refusal is None)
        nudge()


def described(info: WorkerInfo, model: ModelInfo) -> WorkerInfo:
    """A worker as others are told of it once its model is loaded."""
    return replace(
        info,
        dtype=model.dtype,
        slot_rank=model.slot_rank,
        num_slots=model.num_slots,
        max_rank=model.max_rank,
        max_sequence_tokens=model.max_sequence_tokens,
        target_modules=",".join(sorted({path.rpartition(".")[2] for path in model.target_modules})),
    )


async def register_base_model(store: StoreView, spec: BaseSpec) -> None:
    """Make the base model known to the store, however long that takes; serving does not wait for it."""
    await until_it_works(lambda: store.register_base_model(spec), "base_model_not_registered")
    log.info("base_model_registered", base_model=spec.name, digest=spec.digest)


def _nothing() -> None:
    """Nudge no fleet."""


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
