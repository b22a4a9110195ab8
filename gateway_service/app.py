"""The gateway's process: what it is made of, and how it begins and ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from gateway_service.deployment import Deployment
from gateway_service.metrics import SidecarMetrics
from gateway_service.routes import Gateway, application
from gateway_service.server import HttpServer, serve_http
from gateway_service.settings import GatewaySettings
from hotslot.errors import FieldViolation, InvalidRequestError
from shared.audit.audit_log import opened_audit
from shared.identity.authenticator import opened_authenticator
from shared.metrics.calls import ClientCalls
from shared.metrics.endpoint import observed
from shared.metrics.exposition import Readings
from shared.metrics.numbers import Measured
from shared.metrics.table import GATEWAY
from shared.process_tuning import spare_what_stays
from shared.quotas.opening import opened_gate
from shared.server.counters import Counters
from shared.server.grpc_server import stop_signal
from shared.server.transport import check_dialled, check_listener

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that serves."""

    gateway: Gateway
    server: HttpServer
    metrics_port: int = 0


@asynccontextmanager
async def running_gateway(settings: GatewaySettings) -> AsyncIterator[RunningGateway]:
    """A gateway that answers, until the block is left; raises InvalidRequestError, InsecureTransportError
    and OSError."""
    if not (settings.store or settings.gateway_worker):
        problem = "neither is set; name the store of a fleet, or the one worker that serves"
        raise InvalidRequestError([FieldViolation("HOTSLOT_STORE, HOTSLOT_GATEWAY_WORKER", problem)])
    security = settings.channel_security()
    check_listener(settings.gateway_listen, settings.gateway_transport)
    for endpoint in filter(None, (settings.store, settings.gateway_worker)):
        check_dialled(endpoint, uses_tls=security.uses_tls, insecure=settings.insecure)
    calls, sidecar = ClientCalls(), SidecarMetrics(settings.gateway_worker_metrics, security)
    deployment = Deployment(settings.store, settings.gateway_worker, security, calls, charges=settings.limits_rates)
    sources: list[Readings] = [calls.readings, sidecar.readings]
    try:
        async with AsyncExitStack() as stack:
            known = opened_authenticator(settings.principals_file, settings.issuers_file)
            authenticator = await stack.enter_async_context(known)
            audit = stack.enter_context(opened_audit("gateway", settings))
            serving = observed(GATEWAY, settings, settings.gateway_transport, sources, beside=sidecar.with_worker)
            metrics = await stack.enter_async_context(serving)
            scrape = metrics.text if settings.gateway_metrics else None
            gate = await stack.enter_async_context(opened_gate(settings, Counters()))
            gateway = Gateway(settings, deployment, authenticator, audit, scrape, gate=gate)
            sources.append(gateway.numbers.readings)
            async with serve_http(application(gateway), settings, gate.counters) as server:
                sources.append(lambda: [Measured("hotslot_http_connections", server.num_connections)])
                yield RunningGateway(gateway, server, metrics.port)
    finally:
        await deployment.close()
        await sidecar.close()


async def run(settings: GatewaySettings) -> None:
    """Serve until a signal comes."""
    async with running_gateway(settings) as running:
        spare_what_stays()
        log.info("ready", address=settings.gateway_listen, port=running.server.port, worker=settings.gateway_worker)
        received = await stop_signal()
        log.info("stopping", signal=received.name)
        running.gateway.is_stopping = True
        await asyncio.sleep(settings.drain_delay_s)
