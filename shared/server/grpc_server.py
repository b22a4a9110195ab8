"""Setting up a gRPC server: health, reflection, limits, and an end that loses no call.

async with serve([service(placement_pb2, "PlacementService", add_..._to_server, servicer)], options) as server:
    await server.set_ready(True)
    await stop_signal()
"""

import asyncio
import errno
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hotslot.endpoints import listen_endpoint
from hotslot.rpc.message_sizes import MAX_MESSAGE_BYTES
from shared.audit.audit_log import AuditLog
from shared.identity.authenticator import Authenticator
from shared.identity.needs import check_needs
from shared.quotas.gate import QuotaGate
from shared.server.call_log import CallObserver, log_call
from shared.server.connection_bounds import connection_options
from shared.server.health_check import FactualHealthServicer
from shared.server.interceptor import ErrorInterceptor
from shared.server.standard_calls import PacedProbes
from shared.server.stream_places import STALL_S, StreamLimit
from shared.server.transport import check_listener, server_credentials
from shared.server.wire_scan import check_bounds
from shared.transport_settings import Transport

log = structlog.get_logger(__name__)

LIVENESS = "liveness"
READINESS = "readiness"
RECEIVE_WINDOW_BYTES = 64 * 2**10
"""Bytes that a client's stream may send beyond the message that is being received: that one may always come whole."""
MAX_WAITING_CALLS = 8192
"""That arrived and were not taken by the event loop yet. Beyond it gRPC ends calls as CANCELLED, which tells callers
nothing; by default from 1,000 on, which a loop that is short of processor time reaches within seconds."""

AGE_SPREAD = 1.1
"""gRPC ends connections at up to so many times their age."""
GOODBYE_S = 0.5
"""Longest time until clients hear that their connection has ended."""
LAST_WORDS_S = 1.0
"""Longest time for the statuses of calls that took longer than the grace to leave."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Options of a server: its address and limits."""

    address: str = "127.0.0.1:0"
    """host:port, where port 0 takes a free one, or unix:/path."""
    transport: Transport = field(default_factory=Transport)
    """Certificates, and the health port beside it."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Largest message in either direction; no less than clients may send."""
    max_request_bytes: int = MAX_MESSAGE_BYTES
    """Larger requests are refused as INVALID_REQUEST, undecoded."""
    max_connection_age_s: float = 0.0
    """After this long a connection takes no new calls, so that long-lived clients see new servers; those that run go
    on. 0 means that connections live as long as their clients like."""
    keepalive_s: float = 20.0
    """Longest time between two probes of an idle connection, in both directions."""
    max_concurrent_calls: int | None = None
    """More are refused with RESOURCE_EXHAUSTED by grpc itself."""
    stall_s: float = STALL_S
    """Longest time in which a stream's caller takes nothing, or sends nothing, before the stream is ended."""
    stream_limits: tuple[StreamLimit, ...] = ()
    """Most streams that run at the same time; tenants share them."""
    drain_delay_s: float = 0.0
    """Time for load balancers to notice that the server is not ready any more; calls are taken meanwhile."""
    grace_s: float = 30.0
    """Time for running calls to finish when the server stops; longer ones end as UNAVAILABLE."""

    @property
    def drain_s(self) -> float:
        """From not being ready to stopping: until no load balancer sends connections and the last one has its age.

        Until its clients know that a server stops, gRPC ends calls that they still send as CANCELLED. No client sends
        once all connections have ended by age, which clients hear of in time.
        """
        if not self.max_connection_age_s:
            return self.drain_delay_s
        return self.drain_delay_s + AGE_SPREAD * self.max_connection_age_s + GOODBYE_S


@dataclass(frozen=True, slots=True)
class Service:
    """One service to serve."""

    full_name: str
    add_to_server: Callable[[Any, Any], None]
    servicer: object


def service(pb2: ModuleType, name: str, add_to_server: Callable[[Any, Any], None], servicer: object) -> Service:
    """A service by its generated module, for example `service(placement_pb2, "PlacementService", …)`."""
    return Service(pb2.DESCRIPTOR.services_by_name[name].full_name, add_to_server, servicer)


class RpcServer:
    """A server that listens. Made by `serve`."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        names: Sequence[str],
        options: ServerOptions,
        interceptor: ErrorInterceptor,
    ) -> None:
        """The interceptor knows the calls that run, and can end them."""
        self.port = port
        """The port it listens on, also when 0 was asked for."""
        self.health_port = 0
        """Port of the health service alone; 0 where there is none."""
        self._server = server
        self._end_calls = interceptor.end_calls
        self.calls = interceptor.calls
        """Numbers of its calls."""
        self._health = FactualHealthServicer()
        self._paced_probes = interceptor.paced.beside()
        self._names = ("", READINESS, *names)
        self._options = options
        self._was_ready = False
        self._stopping = False
        self._health_server: grpc.aio.Server | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def start(self) -> None:
        """Begin to answer: alive, and not ready."""
        await self._server.start()
        if address := self._options.transport.health_address:
            probes = PacedProbes(self._paced_probes)
            self._health_server = grpc.aio.server(interceptors=[probes], options=_grpc_options(self._options))
            self.health_port = _bind(self._health_server, str(listen_endpoint(address)), None)
            self._paced_probes.connections.port = self.health_port
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
            await self._health_server.start()
        await self._set(LIVENESS, True)
        await self.set_ready(False)

    async def set_ready(self, ready: bool) -> None:
        """Say over the health service whether to send calls here; a server that stops stays not ready."""
        ready = ready and not self._stopping
        self._was_ready |= ready
        for name in self._names:
            await self._set(name, ready)

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop being ready, wait until no calls come any more, let running ones finish within the grace, then end.

        `at_once` does not wait for calls to come no more. Leaving the block of `serve` calls it; calling it before is
        harmless.
        """
        if not self._stopping:
            self._stopping = True
            await self.set_ready(False)
            if self._was_ready and not at_once:
                await asyncio.sleep(self._options.drain_s)
        ending = asyncio.get_running_loop().call_later(self._options.grace_s, self._end_calls)
        try:
            await self._server.stop(self._options.grace_s + LAST_WORDS_S)
        finally:
            ending.cancel()
            if self._health_server is not None:
                await self._health_server.stop(None)

    async def _set(self, name: str, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)


@asynccontextmanager
async def serve(
    services: Sequence[Service],
    options: ServerOptions,
    *,
    observers: Sequence[CallObserver] = (log_call,),
    authenticator: Authenticator | None = None,
    audit: AuditLog | None = None,
    quotas: QuotaGate | None = None,
) -> AsyncIterator[RpcServer]:
    """Serve until the block is left, then stop gracefully.

    Raises InvalidEndpointError when the address is none, InsecureTransportError where plaintext would leave the machine
    unasked, InvalidRequestError for certificates that cannot be used, OSError (EADDRINUSE) when it cannot be listened
    on, and LookupError for a service with a request whose fields are not all bounded, or with an RPC of which is not
    known what it needs. With an authenticator, callers are known, and may do what their scopes allow.
    """
    address = str(listen_endpoint(options.address))
    check_listener(options.address, options.transport)
    for entry in services:
        check_bounds(entry.full_name)
        check_needs(entry.full_name)
    interceptor = ErrorInterceptor(
        observers,
        stall_s=options.stall_s,
        limits=options.stream_limits,
        max_request_bytes=options.max_request_bytes,
        authenticator=authenticator,
        audit=audit,
        quotas=quotas,
        max_calls_per_s=options.transport.max_calls_per_s,
    )
    grpc_server = grpc.aio.server(
        interceptors=[interceptor],
        options=_grpc_options(options),
        maximum_concurrent_rpcs=options.max_concurrent_calls,
    )
    port = _bind(grpc_server, address, server_credentials(options.transport))
    interceptor.paced.connections.port = port
    names = [entry.full_name for entry in services]
    for entry in services:
        entry.add_to_server(entry.servicer, grpc_server)
    server = RpcServer(grpc_server, port, names, options, interceptor)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], grpc_server)
    await server.start()
    log.info("listening", address=options.address, port=port, services=names)
    try:
        yield server
    finally:
        await server.stop()
        log.info("stopped", port=port)


async def stop_signal() -> signal.Signals:
    """Wait for SIGTERM or SIGINT. A second one, while the server stops, ends the process at once."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[signal.Signals] = loop.create_future()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, _resolve, received, number)
    try:
        return await received
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _resolve(received: asyncio.Future[signal.Signals], number: signal.Signals) -> None:
    if not received.done():
        received.set_result(number)


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Port that was taken; raises OSError."""
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as exc:
        raise OSError(
            errno.EADDRINUSE,
            f"cannot listen on {address}: the port is taken or the address is not this machine's; "
            f"choose another address, or port 0 for a free one",
        ) from exc


def _grpc_options(options: ServerOptions) -> list[tuple[str, int]]:
    keepalive_ms = round(options.keepalive_s * 1e3)
    settings = [
        # A window that does not grow bounds what is on its way when a stream is cut, and must be sent again.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", RECEIVE_WINDOW_BYTES),
        ("grpc.server.max_pending_requests", MAX_WAITING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_WAITING_CALLS),
        # Two servers on one port would share its connections at random.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        # A server that was too busy to read sees several probes at once, which is no abuse: no client is cut off.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", keepalive_ms // 2),
        ("grpc.http2.max_ping_strikes", 0),
        *connection_options(options.transport.max_connections),
    ]
    if options.max_connection_age_s:
        settings.append(("grpc.max_connection_age_ms", round(options.max_connection_age_s * 1e3)))
    return settings
