"""The gateway's process: what it is made of, and how it begins and ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from gateway_service.deployment import Deployment
from gateway_service.routes import Gateway, application
from gateway_service.server import HttpServer, serve_http
from gateway_service.settings import GatewaySettings
from hotslot.errors import FieldViolation, InvalidRequestError
from shared.audit.audit_log import opened_audit
from shared.identity.authenticator import opened_authenticator
from shared.process_tuning import spare_what_stays
from shared.server.grpc_server import stop_signal
from shared.server.transport import check_dialled, check_listener

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that serves."""

    gateway: Gateway
    server: HttpServer


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
    deployment = Deployment(settings.store, settings.gateway_worker, security)
    try:
        async with AsyncExitStack() as stack:
            known = opened_authenticator(settings.principals_file, settings.issuers_file)
            authenticator = await stack.enter_async_context(known)
            audit = stack.enter_context(opened_audit("gateway", settings))
            gateway = Gateway(settings, deployment, authenticator, audit)
            async with serve_http(application(gateway), settings) as server:
                yield RunningGateway(gateway, server)
    finally:
        await deployment.close()


async def run(settings: GatewaySettings) -> None:
    """Serve until a signal comes."""
    async with running_gateway(settings) as running:
        spare_what_stays()
        log.info("ready", address=settings.gateway_listen, port=running.server.port, worker=settings.gateway_worker)
        received = await stop_signal()
        log.info("stopping", signal=received.name)
        running.gateway.is_stopping = True
        await asyncio.sleep(settings.drain_delay_s)
