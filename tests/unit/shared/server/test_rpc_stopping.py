"""A server that stops: who did not cancel is never told CANCELLED, over real sockets and with plain clients too."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from hotslot.errors import StoreUnavailableError, UnavailableError
from hotslot.rpc.status import from_rpc_error
from shared.server.grpc_server import RpcServer, ServerOptions, Service, serve
from tests.support.waiting import until

NAME = "hotslot.worker.v1.InferenceService"
METHOD = f"/{NAME}/Generate"
LINGERS_S = 1.0
"""How long a busy event loop takes no call."""


class Streams:
    """Answers each call with one message, and to "endless" never stops."""

    def __init__(self) -> None:
        self.open = 0

    async def generate(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.open += 1
        try:
            if request != b"silent":
                yield request
            if request != b"short":
                await asyncio.Event().wait()
        finally:
            self.open -= 1

    def add_to_server(self, servicer: Any, server: Any) -> None:
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(self.generate)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, {"Generate": handler}),))


@asynccontextmanager
async def streams(options: ServerOptions) -> AsyncIterator[tuple[RpcServer, Streams]]:
    servicer = Streams()
    async with serve([Service(NAME, servicer.add_to_server, servicer)], options) as server:
        await server.set_ready(True)
        yield server, servicer


def before_stopping(server: RpcServer, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something at the last moment before gRPC stops."""
    stop = server._server.stop

    async def act_and_stop(grace: float | None) -> None:
        monkeypatch.setattr(server._server, "stop", stop)
        act()
        await stop(grace)

    monkeypatch.setattr(server._server, "stop", act_and_stop)


def call(channel: grpc.Channel, request: bytes) -> list[bytes]:
    """The answers; blocks, and raises what the server ended the call with."""
    method: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)
    return list(method(request, timeout=60))


async def test_clients_have_left_by_the_time_a_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ServerOptions(max_connection_age_s=0.2, grace_s=5)
    async with streams(options) as (server, _):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            states: list[grpc.ChannelConnectivity] = []
            channel.subscribe(states.append)
            assert await asyncio.to_thread(call, channel, b"short") == [b"short"]
            await until(lambda: grpc.ChannelConnectivity.READY in states)
            at_the_end: list[grpc.ChannelConnectivity] = []
            before_stopping(server, monkeypatch, lambda: at_the_end.append(states[-1]))
            await server.stop()
            # Its next call would make a connection, which a load balancer gives to somebody else.
            assert at_the_end == [grpc.ChannelConnectivity.IDLE]


async def test_a_call_that_comes_while_a_server_stops_finds_it_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC ends it as CANCELLED."""
    async with streams(ServerOptions(grace_s=5)) as (server, _):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, ThreadPoolExecutor(2) as threads:
            assert await asyncio.to_thread(call, channel, b"short") == [b"short"]
            outcomes = []

            def arrive() -> None:
                # The first call is the one that the server has asked for; the other has to wait for the loop.
                for _ in range(2):
                    outcomes.append(threads.submit(call, channel, b"short"))
                    time.sleep(LINGERS_S)

            before_stopping(server, monkeypatch, arrive)
            await server.stop()
            served, ended = [await asyncio.to_thread(outcome.exception) for outcome in outcomes]
    assert served is None
    assert isinstance(ended, grpc.RpcError)
    assert type(from_rpc_error(ended)) is UnavailableError
    assert type(from_rpc_error(ended, unavailable=StoreUnavailableError)) is StoreUnavailableError


@pytest.mark.parametrize("request_", [b"silent", b"endless"])
async def test_a_call_that_outlasts_the_grace_is_told_that_the_server_stops(request_: bytes) -> None:
    async with streams(ServerOptions(grace_s=0.1)) as (server, servicer):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, ThreadPoolExecutor(1) as threads:
            outcome = threads.submit(call, channel, request_)
            await until(lambda: servicer.open == 1)
            await server.stop()
            assert servicer.open == 0
            failure = await asyncio.to_thread(outcome.exception)
    assert isinstance(failure, grpc.RpcError)
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert "the server stops" in from_rpc_error(failure).message


async def test_a_server_that_never_was_ready_stops_at_once() -> None:
    servicer = Streams()
    options = ServerOptions(drain_delay_s=60, max_connection_age_s=60)
    async with asyncio.timeout(45), serve([Service(NAME, servicer.add_to_server, servicer)], options):
        pass


async def test_a_server_that_is_broken_stops_at_once() -> None:
    async with asyncio.timeout(45), streams(ServerOptions(drain_delay_s=60)) as (server, _):
        await server.stop(at_once=True)


def test_a_server_drains_for_longer_than_its_connections_live() -> None:
    assert ServerOptions(drain_delay_s=5, max_connection_age_s=20).drain_s == pytest.approx(27.5)
    assert ServerOptions(drain_delay_s=5).drain_s == 5
