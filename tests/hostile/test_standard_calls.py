"""Calls of health and reflection need no token: each address has a pace of them, which probes never meet."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hotslot.errors import InvalidRequestError, QuotaExceededError
from hotslot.rpc.status import from_rpc_error
from shared.server import late_refusals, standard_calls
from shared.server.flood_connections import CONNECTIONS
from shared.server.paced_calls import SETTING
from shared.server.standard_calls import STREAMS
from tests.hostile.test_call_floods import PacedServer, paced, pour
from tests.hostile.test_connections import dialled, status
from tests.support.one_moment import one_moment
from tests.support.raw_http2 import raw_connection
from tests.support.waiting import until

pytestmark = pytest.mark.integration

CHECK = "/grpc.health.v1.Health/Check"
UNKNOWN = "/acme.Nothing/Here"
SERVING = health_pb2.HealthCheckResponse.SERVING


@asynccontextmanager
async def probed(folder: Path, **how: Any) -> AsyncIterator[tuple[PacedServer, grpc.aio.Channel, Any]]:
    async with paced(folder, **how) as running, grpc.aio.insecure_channel(running.endpoint) as channel:
        yield running, channel, health_pb2_grpc.HealthStub(channel)


async def _call(channel: grpc.aio.Channel, method: str, message: bytes) -> None:
    call: Any = channel.unary_unary(method)
    await call(message)


async def _met(running: PacedServer) -> list[tuple[str, str]]:
    """Token that the server knows from a call."""
    token = running.token("loud")
    async with dialled(running.server) as stub:
        await status(stub, metadata=token)
    return token


@asynccontextmanager
async def probed_by(
    folder: Path, *, is_known: bool
) -> AsyncIterator[tuple[PacedServer, grpc.aio.Channel, Any, list[tuple[str, str]]]]:
    """As `probed`, with the metadata of a caller whose token the server knows from a call, or of one without."""
    async with probed(folder) as (running, channel, stub):
        yield running, channel, stub, await _met(running) if is_known else []


async def test_probes_at_a_usual_pace_are_answered_for_ever(tmp_path: Path) -> None:
    async with probed(tmp_path) as (running, _, stub):
        for _ in range(6):
            answers = await asyncio.gather(*(stub.Check(health_pb2.HealthCheckRequest()) for _ in range(8)))
            assert [each.status for each in answers] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 8
        assert not running.count(SETTING)


async def test_probes_too_many_of_an_address_hear_so_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_refusals, "HEARS_AFTER_S", 0.3)
    async with probed(tmp_path) as (running, _, stub):
        began_s = time.monotonic()
        with one_moment():
            calls = (stub.Check(health_pb2.HealthCheckRequest()) for _ in range(90))
            ended = await asyncio.gather(*calls, return_exceptions=True)
        refused = [from_rpc_error(each) for each in ended if isinstance(each, grpc.RpcError)]
        assert 0 < len(refused) < 90
        assert {type(error) for error in refused} == {QuotaExceededError}
        assert time.monotonic() - began_s > 0.25
        assert running.count(SETTING) == len(refused)


@pytest.mark.parametrize("method", [CHECK, "/grpc.health.v1.Health/Watch", UNKNOWN])
async def test_a_flood_without_a_token_is_cut_off_and_callers_are_served(tmp_path: Path, method: str) -> None:
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        await status(stub, metadata=running.token("quiet"))
        async with raw_connection(running.endpoint) as connection:
            await pour(connection, [], 2_000, method)
            await until(lambda: connection.is_closed)
        assert running.count(CONNECTIONS) == 1
        await status(stub, metadata=running.token("quiet"))


async def test_guesses_of_tokens_stop_no_probe_of_their_address(tmp_path: Path) -> None:
    async with probed(tmp_path) as (running, _, stub):
        async with raw_connection(running.endpoint) as connection:
            await pour(connection, [("authorization", "Bearer hs1_0011223344556677_0123")], 2_000)
            await until(lambda: connection.is_closed)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=120, wait_for_ready=True)


async def test_the_health_port_keeps_the_same_pace(tmp_path: Path) -> None:
    async with paced(tmp_path, health=True) as running:
        endpoint = f"127.0.0.1:{running.server.health_port}"
        async with raw_connection(endpoint) as connection:
            await pour(connection, [], 2_000, CHECK)
            await until(lambda: connection.is_closed)


@pytest.mark.parametrize("is_known", [False, True])
async def test_messages_of_a_stream_come_at_the_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    monkeypatch.setattr(late_refusals, "HEARS_AFTER_S", 0.2)
    async with probed_by(tmp_path, is_known=is_known) as (running, channel, _, token):
        made: Any = reflection_pb2_grpc.ServerReflectionStub
        stub = made(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        began_s = time.monotonic()
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([asked] * 200), metadata=token)]
        assert len(answers) == 200
        assert all(answer.list_services_response.service for answer in answers)
        assert time.monotonic() - began_s > 2.5, "200 messages come at 50 a second, of which 50 may come at once"
        assert running.count(SETTING)


@pytest.mark.parametrize("is_known", [False, True])
async def test_streams_of_an_address_or_a_caller_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    monkeypatch.setattr(standard_calls, "MAX_STREAMS", 3)
    async with probed_by(tmp_path, is_known=is_known) as (running, _, stub, token):
        watches = [stub.Watch(health_pb2.HealthCheckRequest(), metadata=token) for _ in range(3)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Watch(health_pb2.HealthCheckRequest(), metadata=token).read()
        error = from_rpc_error(refused.value)
        assert isinstance(error, QuotaExceededError)
        assert error.subject == STREAMS
        assert running.count(STREAMS) == 1
        await running.server.set_ready(True)
        for watch in watches:
            assert (await watch.read()).status == SERVING
            watch.cancel()


async def test_a_watch_that_is_never_read_holds_up_no_change_of_health(tmp_path: Path) -> None:
    async with probed(tmp_path) as (running, _, stub), raw_connection(running.endpoint, window_bytes=0) as sleeper:
        block = sleeper.block("/grpc.health.v1.Health/Watch", [])
        await sleeper.send(b"".join(sleeper.call(block, b"") for _ in range(4)))
        await until(lambda: sleeper.seen["headers"] >= 1)
        await asyncio.wait_for(running.server.set_ready(True), 120)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING


@pytest.mark.parametrize("message", [b"\x0a" + b"\xff" * 9, b"\x0a\x00" * 2**14])
async def test_messages_that_are_none_are_refused(tmp_path: Path, message: bytes) -> None:
    async with probed(tmp_path) as (_, channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _call(channel, CHECK, message)
        assert isinstance(from_rpc_error(refused.value), InvalidRequestError)


async def test_what_a_known_caller_asks_for_and_is_not_here_counts_once(tmp_path: Path) -> None:
    async with probed_by(tmp_path, is_known=True) as (running, channel, stub, token):
        for _ in range(30):
            call: Any = channel.unary_unary(UNKNOWN)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call(b"", metadata=token)
            assert ended.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await stub.Check(health_pb2.HealthCheckRequest(), metadata=token)).status != SERVING
        assert not running.count(SETTING)


async def test_a_method_that_does_not_exist_is_told_so(tmp_path: Path) -> None:
    async with probed(tmp_path) as (_, channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _call(channel, UNKNOWN, b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
