"""A look at an endpoint: whether the service that is meant answers there, and otherwise who does."""

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.endpoints import Endpoint, dialled_endpoint
from hotslot.errors import InsecureTransportError
from hotslot.local.listeners import listener
from hotslot.rpc.channel import ChannelOptions, open_blocking_channel
from hotslot.rpc.server_facts import ServerFacts

STORE_SERVICE = "hotslot.store.v1.AdapterStoreService"
WORKER_SERVICE = "hotslot.worker.v1.InferenceService"
NAMES = {STORE_SERVICE: "a store", WORKER_SERVICE: "a worker"}
TIMEOUT_S = 3.0
NO_FACTS = ServerFacts()


class ProbeOutcome(Enum):
    """Kind of an answer."""

    SERVING = auto()
    NOT_SERVING = auto()
    ANOTHER = auto()
    """Something answers that is not the service."""
    SILENT = auto()


@dataclass(frozen=True, slots=True)
class Probed:
    """Answer of an endpoint."""

    answer: ProbeOutcome
    found: str
    """The answer in words."""
    facts: ServerFacts = NO_FACTS
    ahead_s: float | None = None
    """Seconds that the server's clock is ahead of ours."""
    within_s: float = 0.0
    """Largest error of that."""


def probe(endpoint: str, service: str, options: ChannelOptions, timeout_s: float = TIMEOUT_S) -> Probed:
    """Ask for the health of a service; raises InvalidEndpointError."""
    try:
        return _asked(endpoint, service, options, timeout_s)
    except InsecureTransportError as exc:
        return Probed(ProbeOutcome.ANOTHER, exc.message)


def _asked(endpoint: str, service: str, options: ChannelOptions, timeout_s: float) -> Probed:
    with open_blocking_channel(endpoint, options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stub has no methods
        began_s = time.time()
        try:
            response, call = stub.Check.with_call(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as exc:
            return _failed(endpoint, service, stub, exc, timeout_s)
        ended_s = time.time()
    facts = ServerFacts.from_metadata(call.trailing_metadata())
    middle_s, within_s = (began_s + ended_s) / 2, (ended_s - began_s) / 2
    ahead_s = None if facts.clock_s is None else facts.clock_s - middle_s
    if response.status == health_pb2.HealthCheckResponse.SERVING:
        return Probed(ProbeOutcome.SERVING, f"{endpoint} serves", facts, ahead_s, within_s)
    return Probed(ProbeOutcome.NOT_SERVING, f"{endpoint} answers, and is not ready", facts, ahead_s, within_s)


def _failed(endpoint: str, service: str, stub: Any, error: Any, timeout_s: float) -> Probed:
    if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        for other in NAMES.keys() - {service}:
            with suppress(grpc.RpcError):
                stub.Check(health_pb2.HealthCheckRequest(service=other), timeout=timeout_s)
                return Probed(ProbeOutcome.ANOTHER, f"{endpoint} is {NAMES[other]} rather than {NAMES[service]}")
        return Probed(ProbeOutcome.ANOTHER, f"{endpoint} is another gRPC server")
    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Probed(ProbeOutcome.ANOTHER, f"{endpoint} refuses: {error.code().name}: {error.details()}")
    target = dialled_endpoint(endpoint)
    if not isinstance(target, Endpoint):
        return Probed(ProbeOutcome.SILENT, f"nothing answers at {endpoint}: {error.details()}")
    try:
        with socket.create_connection((target.host, target.port), timeout_s):
            pass
    except OSError as exc:
        return Probed(ProbeOutcome.SILENT, f"nothing answers at {endpoint}: {exc.strerror or exc}")
    by = listener(target.port) if target.address is not None and target.address.is_loopback else None
    who = f"{by}" if by is not None else "something"
    return Probed(
        ProbeOutcome.ANOTHER, f"{who} has {endpoint}, and does not answer as {NAMES[service]} within {timeout_s:g} s"
    )
