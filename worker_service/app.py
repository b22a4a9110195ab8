"""A worker's life: alive at once, ready when its model is, gone without losing a request."""

import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from hotslot.errors import HotslotError
from hotslot.formats.base_spec import BaseSpec
from hotslot.ids import new_worker_id
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2, adapter_control_pb2_grpc, inference_pb2
from hotslot.rpc.message_sizes import MAX_GENERATE_BYTES
from shared.audit.audit_log import opened_audit
from shared.coordination.connection import RedisOptions
from shared.identity.authenticator import opened_authenticator
from shared.loops import Loops, first_of
from shared.quotas.opening import opened_gate
from shared.server.call_log import SlowCalls, log_call
from shared.server.counters import Counters
from shared.server.grpc_server import RpcServer, ServerOptions, Service, serve, service, stop_signal
from shared.telemetry import bind_log_context
from worker_service.ending import EXIT_OK, ProcessEnding
from worker_service.front.control_servicer import AdapterControlServicer
from worker_service.front.door import FrontDoor
from worker_service.front.inference_servicer import InferenceServicer, add_inference_servicer
from worker_service.front.request_numbers import RequestNumbers
from worker_service.front.worker import ServingWorker
from worker_service.metrics import served_metrics
from worker_service.settings import WorkerSettings
from worker_service.starting import Host, LoadModel, start

log = structlog.get_logger(__name__)


async def run(settings: WorkerSettings, describe: Callable[[], BaseSpec], load: LoadModel) -> ProcessEnding:
    """Serve until a signal comes, or an essential loop fails; returns how the process is to end.

    Both functions are called on a thread: `describe` says quickly which base model it is, `load` is heavy.
    """
    worker, ending = ServingWorker(new_worker_id()), ProcessEnding()
    bind_log_context(worker_id=worker.worker_id)
    requests = RequestNumbers(
        worker.base_model_name, by_tenant=settings.metrics_tenants, slow_s=settings.slow_request_s
    )
    observers = (log_call, SlowCalls(settings.slow_request_s), requests)
    async with (
        opened_authenticator(settings.principals_file, settings.issuers_file) as authenticator,
        opened_gate(settings, Counters(), _redis_options(settings)) as gate,
        AsyncExitStack() as outer,
        serve(
            services(worker),
            _server_options(settings),
            observers=observers,
            authenticator=authenticator,
            audit=outer.enter_context(opened_audit("worker", settings)),
            quotas=gate,
        ) as server,
        AsyncExitStack() as stack,
        Loops() as loops,
    ):
        host = Host(settings, worker, server, stack, loops, ending, rates=gate.rates)
        host.sources.extend((server.calls.readings, requests.readings, host.calls.readings))
        await stack.enter_async_context(served_metrics(worker, settings, host.sources))
        loops.essential("start", lambda: start(host, describe, load))
        reason: signal.Signals | Exception = await first_of(stop_signal(), loops.until_failed())
        if worker.is_started:
            await shut_down(worker, server)
        else:
            # The model may be being loaded or compiled.
            ending.failed_start = ending.leaves_threads = True
        if isinstance(reason, signal.Signals):
            ending.code = EXIT_OK
        elif isinstance(reason, HotslotError):
            log.error("failed", why=reason.message)
            ending.failure = reason
        else:
            raise reason
    return ending


async def shut_down(worker: ServingWorker, server: RpcServer) -> None:
    """End without losing a request: be picked no more, leave the fleet, serve what still comes until it is over.

    A worker whose engine is lost can serve nothing, and does not wait for requests to come no more.
    """
    await server.set_ready(False)
    await worker.retire()
    await server.stop(at_once=worker.parts.engine.lost.is_set())


def services(worker: ServingWorker) -> list[Service]:
    """Services of a worker."""
    return [
        service(
            inference_pb2, "InferenceService", add_inference_servicer, InferenceServicer(worker, FrontDoor(worker))
        ),
        service(
            adapter_control_pb2,
            "AdapterControlService",
            adapter_control_pb2_grpc.add_AdapterControlServiceServicer_to_server,
            AdapterControlServicer(worker),
        ),
    ]


def _redis_options(settings: WorkerSettings) -> RedisOptions | None:
    return RedisOptions.of(settings.redis_url, settings) if settings.redis_url is not None else None


def _server_options(settings: WorkerSettings) -> ServerOptions:
    return ServerOptions(
        address=settings.listen,
        max_request_bytes=MAX_GENERATE_BYTES,
        max_connection_age_s=settings.max_connection_age_s,
        drain_delay_s=settings.drain_delay_s,
        grace_s=settings.drain_grace_s,
        stall_s=settings.stream_stall_s,
        transport=settings.transport(),
    )
