"""The store's process: what it is made of, and how it begins and ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import structlog

from hotslot.ids import parse_tenant
from hotslot.pb.hotslot.store.v1 import (
    adapter_store_pb2,
    blob_pb2,
)
from hotslot.rpc import blob_chunks, publication_messages
from shared.audit.audit_log import opened_audit
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.identity.authenticator import opened_authenticator
from shared.loops import Loops
from shared.metrics.exposition import Readings
from shared.process_tuning import spare_what_stays
from shared.quotas.gate import QuotaGate
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates
from shared.server.counters import Counters
from shared.server.grpc_server import RpcServer, Service, serve, service, stop_signal
from store_service.catalog.base_models import BaseModels
from store_service.catalog.behind import VersionsBehind
from store_service.catalog.epochs import Epochs
from store_service.catalog.policies import Policies
from store_service.catalog.pruning import VersionRetention
from store_service.catalog.quota_checks import StoredQuotas
from store_service.catalog.running_stores import RENEW_S
from store_service.catalog.shares import Shares
from store_service.catalog.watch import ChangeSignal, TenantWatches
from store_service.content.arrivals import ArrivalFolder
from store_service.content.collection import Collector
from store_service.content.keyed import KeyedContent
from store_service.content.origins import Origins
from store_service.content.published import PublishedBlobs
from store_service.content.reading import ContentReader
from store_service.content.recovery import Recovery
from store_service.content.released import ReleasedBlobs
from store_service.content.scrub import Scrub
from store_service.content.upkeep import collect, keep_blobs, scrub_for_ever
from store_service.content.uploads import UploadFolder
from store_service.execution.call_queue import CallQueue
from store_service.execution.fair_queue import FairQueue
from store_service.execution.offload import Offload
from store_service.execution.turns import Turns
from store_service.garbage_collection import GarbageCollection
from store_service.health_looks import store_health
from store_service.imports.importer import Importer, ImportOptions
from store_service.imports.store_turns import StoreTurns
from store_service.metrics import served_metrics
from store_service.opening import Data, leave, locked, open_data, stay_known
from store_service.placement.access import tell_access
from store_service.placement.fleets import open_fleets
from store_service.placement.holders import Holders
from store_service.placement.serving import ServingAdvice
from store_service.pruner import Pruner
from store_service.registry import Registry
from store_service.rpc.adapter_store_servicer import AdapterStoreServicer
from store_service.rpc.blob_servicer import BlobServicer
from store_service.rpc.fleet_servicer import FleetServicer, fleet_services
from store_service.rpc.placement_services import placement_services
from store_service.rpc.process_answers import ProcessAnswers
from store_service.rpc.publications import Publications
from store_service.rpc.quota_answers import QuotaAnswers
from store_service.rpc.server_options import server_options
from store_service.settings import StoreSettings
from store_service.signatures.requirement import SignatureRequirement
from store_service.sources.sources import Sources

log = structlog.get_logger(__name__)

PASSES_PER_CHUNK = 3
"""Passes of the event loop for a chunk of any stream; gRPC needs four to take a call."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Threads and queues that keep the event loop from waiting."""

    offload: Offload
    admission: FairQueue
    lookups: CallQueue
    changes: CallQueue
    signal: ChangeSignal
    numbers: list[Readings] = field(default_factory=list)
    """Numbers of the store's parts, for its metrics."""


@dataclass(frozen=True, slots=True)
class Domain:
    """The store's parts below its servicers."""

    data: Data
    published: PublishedBlobs
    uploads: UploadFolder
    registry: Registry
    importer: Importer
    collector: Collector
    sources: Sources
    recovery: Recovery
    policies: Policies
    retention: VersionRetention
    pruner: Pruner
    limits: TenantLimits
    garbage: GarbageCollection


@asynccontextmanager
async def running_store(settings: StoreSettings) -> AsyncIterator[RpcServer]:
    """A store that answers, until the block is left; then calls end first, loops after them, and files last.

    Raises StoreUnavailableError when its folder, database or object storage cannot be used, or do not belong together,
    CatalogDamagedError, and OSError for its address.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(settings.data_dir))
        execution = build_execution(settings, stack)
        domain = await build_domain(settings, execution, stack)
        redis = await build_redis(settings, stack)
        rates = Rates(domain.limits, redis, share=settings.quota_share_percent / 100)
        gate = QuotaGate(domain.limits, rates, Counters())
        services = build_services(settings, execution, domain, redis, gate)
        scrub = build_scrub(settings, domain, stack)
        loops = await stack.enter_async_context(Loops())
        begin_loops(settings, execution, domain, scrub, redis, loops)
        known = await stack.enter_async_context(opened_authenticator(settings.principals_file, settings.issuers_file))
        audit = stack.enter_context(opened_audit("store", settings))
        serving = serve(services, server_options(settings), authenticator=known, audit=audit, quotas=gate)
        server = await stack.enter_async_context(serving)
        execution.numbers.append(server.calls.readings)
        await stack.enter_async_context(served_metrics(settings, domain.data.blobs, execution.numbers))
        await server.set_ready(True)
        yield server


def build_execution(settings: StoreSettings, stack: AsyncExitStack) -> Execution:
    """Threads for files, turns for admissions, and two queues for the catalog."""
    offload = Offload("store-io", settings.num_io_threads)
    stack.callback(offload.close)
    admission = FairQueue("admission", settings.max_admissions, settings.max_waiting_admissions)
    stack.callback(admission.close)
    lookups, changes = (
        CallQueue(name, settings.num_catalog_threads, settings.max_catalog_wait_s)
        for name in ("catalog-lookups", "catalog-changes")
    )
    stack.callback(lookups.close)
    stack.callback(changes.close)
    signal = ChangeSignal(asyncio.get_running_loop())
    numbers: list[Readings] = [queue.readings for queue in (admission, lookups, changes)]
    return Execution(offload, admission, lookups, changes, signal, numbers)


async def build_domain(settings: StoreSettings, execution: Execution, stack: AsyncExitStack) -> Domain:
    """Catalog and blobs, opened, and what admits, collects and restores them."""
    offload = execution.offload
    limits = TenantLimits(settings.default_limits, settings.quotas_file)
    data = await offload(open_data, settings, execution.signal.notify, StoredQuotas(limits))
    stack.callback(data.engine.dispose)
    stack.push_async_callback(offload, leave, data)
    base_models = BaseModels(data.engine, tuple(parse_tenant(name) for name in settings.operator_tenants))
    published = PublishedBlobs(data.catalog, data.blobs, data.claims)
    most = settings.max_adapter_bytes
    uploads = UploadFolder(settings.data_dir, max_upload_bytes=most, limits=limits, parts=data.parts)
    signatures = SignatureRequirement(settings.signature_policy_file)
    signatures.open()
    registry = Registry(published, base_models, uploads, settings.admission_limits, signatures, execution.signal)
    imports = ImportOptions(settings.max_imports, settings.import_linger_s, settings.import_refusal_ttl_s)
    turns = StoreTurns(data.leases, data.catalog, offload) if data.parts is not None else None
    importer = Importer(registry, settings.data_dir / "imports", execution.admission, imports, limits, turns)
    stack.push_async_callback(importer.close)
    collection = settings.collection_options
    collector = Collector(published, uploads, data.ledger, data.ownership, collection, objects=data.objects)
    stack.push_async_callback(offload, collector.close)
    await collect(collector, offload)
    sources = settings.sources.opened()
    restores = settings.data_dir / "restores"
    origins = Origins(data.catalog, base_models, data.blobs, sources, settings.admission_limits, restores, data.damaged)
    recovery = Recovery(published, origins, offload, max_restores=settings.max_restores)
    stack.push_async_callback(recovery.close)
    execution.numbers.extend((registry.readings, importer.readings, recovery.opens.readings))
    policies = Policies(data.engine, execution.signal.notify)
    retention = VersionRetention(data.engine, execution.signal.notify, grace_s=settings.retention_grace_s)
    released = ReleasedBlobs(published, retention, data.ownership, data.objects)
    garbage = GarbageCollection(retention, policies, released, collector, data.ownership, data.objects)
    parts = registry, importer, collector, sources, recovery, policies, retention
    return Domain(data, published, uploads, *parts, Pruner(retention, policies, released, offload), limits, garbage)


async def build_redis(settings: StoreSettings, stack: AsyncExitStack) -> RedisConnection | None:
    """The connection to Redis, without which there is no placement."""
    if settings.redis_url is None:
        return None
    return await stack.enter_async_context(RedisConnection(RedisOptions.of(settings.redis_url, settings)))


def build_services(
    settings: StoreSettings, execution: Execution, domain: Domain, redis: RedisConnection | None, gate: QuotaGate
) -> list[Service]:
    """The gRPC services over the domain."""
    registry, offload, turns = domain.registry, execution.offload, Turns(PASSES_PER_CHUNK)
    fleets = open_fleets(redis, settings) if redis is not None else None
    serving = ServingAdvice(fleets)
    publications = Publications(
        registry,
        ArrivalFolder(settings.data_dir, max_bytes=settings.max_adapter_bytes),
        serving,
        VersionsBehind(domain.data.engine),
        Holders(fleets),
        domain.pruner,
        execution.lookups,
        execution.admission,
        offload,
    )
    adapters = AdapterStoreServicer(  # type: ignore[abstract]  # the earlier names are FleetServicer's
        registry,
        domain.importer,
        domain.sources,
        serving,
        execution.lookups,
        execution.changes,
        offload,
        execution.admission,
        TenantWatches(registry.catalog, domain.data.engine, execution.signal, offload),
        domain.policies,
        Shares(domain.data.engine, execution.signal.notify),
        publications,
        domain.retention,
        QuotaAnswers(gate, domain.data.engine, domain.importer, execution.lookups),
        ProcessAnswers(store_health(settings, domain.data, redis, offload), domain.garbage, offload),
        delete_grace_s=settings.delete_grace_s,
    )
    reader = ContentReader(domain.recovery, offload, domain.data.blobs.verified)
    blobs = BlobServicer(domain.uploads, reader, offload, turns)
    code_tenant = parse_tenant(settings.compiled_code_tenant)
    kept_code = KeyedContent(settings.data_dir / "compiled-code", code_tenant, settings.compiled_code_bytes)
    epochs = Epochs(domain.data.engine)
    fleet = FleetServicer(epochs, domain.policies, execution.lookups, execution.changes, kept_code, offload, turns)
    execution.numbers.extend((blobs.readings, publications.received.readings))
    services = [
        service(adapter_store_pb2, "AdapterStoreService", publication_messages.add_to_server, adapters),
        service(blob_pb2, "BlobService", blob_chunks.add_to_server, blobs),
        *fleet_services(fleet),
    ]
    if redis is not None and fleets is not None:
        placement, readings = placement_services(fleets, registry.catalog, registry.base_models, execution.lookups)
        execution.numbers.extend((readings, redis.readings))
        services += placement
    return services


def build_scrub(settings: StoreSettings, domain: Domain, stack: AsyncExitStack) -> Scrub | None:
    """The scrub of the disk, where the settings want one."""
    if not settings.scrub_every_s:
        return None
    marker, max_bytes_per_s = settings.data_dir / "scrubbed", settings.scrub_bytes_per_s
    scrub = Scrub(domain.data.blobs, domain.recovery, marker, max_bytes_per_s=max_bytes_per_s)
    stack.push_async_callback(asyncio.to_thread, scrub.close)
    return scrub


def begin_loops(
    settings: StoreSettings,
    execution: Execution,
    domain: Domain,
    scrub: Scrub | None,
    redis: RedisConnection | None,
    loops: Loops,
) -> None:
    """Begin what goes on beside calls; the store serves without any of it."""
    offload, data, every_s = execution.offload, domain.data, settings.collect_every_s
    loops.repeated("lease of this store", RENEW_S, lambda: offload(stay_known, data))
    loops.repeated("collection", every_s, lambda: collect(domain.collector, offload))
    loops.restarted("retention", lambda: domain.pruner.run(every_s))
    loops.repeated("blob upkeep", every_s, lambda: keep_blobs(domain.published, data.damaged, offload))
    if scrub is not None:
        loops.restarted("scrub", lambda: scrub_for_ever(scrub, settings.scrub_every_s))
    if redis is not None:
        loops.restarted("access to Redis", lambda: tell_access(redis))


async def run(settings: StoreSettings) -> None:
    """Serve until a signal comes."""
    async with running_store(settings) as server:
        spare_what_stays()
        log.info(
            "ready",
            port=server.port,
            data_dir=str(settings.data_dir),
            memory_bound_mib=settings.memory_bound_bytes >> 20,
        )
        received = await stop_signal()
        log.info("stopping", signal=received.name)
