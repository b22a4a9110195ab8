"""The interceptor, the server and the channels over real sockets."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.errors import (
    AdapterNotFoundError,
    HotslotError,
    InternalError,
    InvalidRequestError,
    NotImplementedYetError,
    RequestDeadlineError,
    StoreUnavailableError,
)
from hotslot.ids import TenantId
from hotslot.rpc.channel import SAFE_TO_RETRY, ChannelOptions, open_blocking_channel, open_channel
from hotslot.rpc.status import from_rpc_error
from hotslot.rpc.tenant import tenant_of
from shared.server.call_log import CallRecord
from shared.server.call_messages import Sizes, drive
from shared.server.grpc_server import LIVENESS, READINESS, RpcServer, ServerOptions, Service, serve, stop_signal
from shared.server.stream_places import Stream
from tests.support.waiting import until

NAME = "hotslot.test.v1.EchoService"
SHAPES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


class EchoServicer:
    """Does what the request's text says, in every call shape."""

    def __init__(self) -> None:
        self.freed = asyncio.Event()
        self.entered = asyncio.Event()
        self.calls = 0

    async def act(self, text: str, context: Any) -> str:
        self.calls += 1
        self.entered.set()
        match text:
            case "missing":
                raise AdapterNotFoundError("acme/bot")
            case "bug":
                raise KeyError("secret internals")
            case "undone":
                context.set_code(grpc.StatusCode.UNIMPLEMENTED)
                raise NotImplementedError("Method not implemented!")
            case "tenant":
                return str(tenant_of(context))
            case "deadline":
                return str(context.time_remaining())
            case "unavailable twice":
                if self.calls < 3:
                    raise StoreUnavailableError("not yet")
            case "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.freed.set()
        return text

    async def unary_unary(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=await self.act(request.value, context))

    async def stream_unary(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        texts = [request.value async for request in requests]
        return StringValue(value=await self.act(texts[-1], context))

    async def unary_stream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            yield StringValue(value=await self.act(request.value, context))
            if request.value == "fail late":
                raise AdapterNotFoundError("late")
            while request.value == "flood":
                yield StringValue(value="x" * 65536)
        finally:
            if request.value == "flood":
                await asyncio.sleep(0.01)
                self.freed.set()

    async def stream_stream(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=await self.act(request.value, context))


def add_to_server(servicer: Any, server: Any) -> None:
    handlers = {
        shape: getattr(grpc, f"{shape}_rpc_method_handler")(
            getattr(servicer, shape), StringValue.FromString, StringValue.SerializeToString
        )
        for shape in SHAPES
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


class Echo:
    """One running server with a client."""

    def __init__(self, server: RpcServer, servicer: EchoServicer, records: list[CallRecord]) -> None:
        self.server, self.servicer, self.records = server, servicer, records
        self.endpoint = f"127.0.0.1:{server.port}"

    async def call(self, channel: Any, shape: str, text: str, **kwargs: Any) -> list[str]:
        """Call and collect the answers; failures come as our errors."""
        method = getattr(channel, shape)(f"/{NAME}/{shape}", StringValue.SerializeToString, StringValue.FromString)
        request: Any = StringValue(value=text)
        if shape.startswith("stream"):
            request = iter([request])
        try:
            result = method(request, **kwargs)
            if shape.endswith("_unary"):
                return [(await result).value]
            return [answer.value async for answer in result]
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc


@asynccontextmanager
async def echo(options: ServerOptions | None = None) -> AsyncIterator[Echo]:
    servicer, records = EchoServicer(), list[CallRecord]()
    services = [Service(NAME, add_to_server, servicer)]
    async with serve(services, options or ServerOptions(grace_s=0.2), observers=[records.append]) as server:
        await server.set_ready(True)
        yield Echo(server, servicer, records)


async def health(endpoint: str, service: str) -> int:
    async with open_channel(endpoint) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_call_shape_answers_and_raises_typed_errors(shape: str) -> None:
    async with echo() as server, open_channel(server.endpoint) as channel:
        assert await server.call(channel, shape, "hello") == ["hello"]
        with pytest.raises(AdapterNotFoundError) as missing:
            await server.call(channel, shape, "missing")
        assert missing.value.resource == "acme/bot"
        with pytest.raises(NotImplementedYetError, match=f"{shape} is not implemented"):
            await server.call(channel, shape, "undone")
        await until(lambda: len(server.records) == 3)
        assert [r.code for r in server.records] == [
            grpc.StatusCode.OK,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.UNIMPLEMENTED,
        ]
        assert server.records[1].reason == "ADAPTER_NOT_FOUND"
        assert server.records[1].method == f"/{NAME}/{shape}"


async def test_a_write_that_fails_because_the_caller_left_is_no_bug_of_ours() -> None:
    closed = asyncio.Event()

    async def messages() -> AsyncIterator[str]:
        try:
            yield "message"
        finally:
            closed.set()

    class EndedCall:
        async def write(self, message: bytes) -> None:
            raise grpc.aio.InternalError("the batch failed")

    with pytest.raises(asyncio.CancelledError):
        await drive(messages(), EndedCall(), Stream(60), str.encode, Sizes())
    assert closed.is_set()


async def test_calls_that_come_while_the_loop_is_busy_wait_for_their_turn() -> None:
    """More of them than gRPC lets wait by default: it would end those beyond 1,000 as cancelled."""
    async with echo() as server:
        with open_blocking_channel(server.endpoint) as channel:
            method = channel.unary_unary(f"/{NAME}/unary_unary", StringValue.SerializeToString, StringValue.FromString)
            calls = [method.future(StringValue(value="hello"), timeout=60) for _ in range(2500)]
            time.sleep(0.5)  # noqa: ASYNC251 (what keeps the loop busy)
            codes = await asyncio.to_thread(lambda: {call.code() for call in calls})
    assert codes == {grpc.StatusCode.OK}


@pytest.mark.parametrize("shape", SHAPES)
async def test_our_own_bug_answers_an_incident_and_leaks_nothing(shape: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with echo() as server, open_channel(server.endpoint) as channel:
        with pytest.raises(InternalError) as failure:
            await server.call(channel, shape, "bug")
    assert "secret" not in str(failure.value)
    incident = str(failure.value).split()[-1]
    logged = "".join(capfd.readouterr())
    assert incident in logged
    assert "secret internals" in logged


async def test_messages_before_a_late_failure_arrive() -> None:
    async with echo() as server, open_channel(server.endpoint) as channel:
        method = channel.unary_stream(f"/{NAME}/unary_stream", StringValue.SerializeToString, StringValue.FromString)
        call = method(StringValue(value="fail late"))
        first: Any = await call.read()
        assert first.value == "fail late"
        with pytest.raises(grpc.RpcError) as failure:
            await call.read()
        assert isinstance(from_rpc_error(failure.value), AdapterNotFoundError)


@pytest.mark.parametrize(
    ("shape", "text"), [("unary_unary", "hang"), ("unary_stream", "hang"), ("unary_stream", "flood")]
)
async def test_a_cancelled_call_frees_what_the_handler_held(shape: str, text: str) -> None:
    async with echo() as server, open_channel(server.endpoint) as channel:
        task = asyncio.create_task(server.call(channel, shape, text))
        await server.servicer.entered.wait()
        task.cancel()
        await until(lambda: [r.code for r in server.records] == [grpc.StatusCode.CANCELLED])
        assert server.servicer.freed.is_set(), "the call was over before it had given back what it held"


async def test_the_deadline_ends_the_handler_and_is_typed() -> None:
    async with echo() as server, open_channel(server.endpoint) as channel:
        with pytest.raises(RequestDeadlineError):
            await server.call(channel, "unary_unary", "hang", timeout=0.1)
        async with asyncio.timeout(60):
            await server.servicer.freed.wait()


async def test_every_call_has_a_deadline_even_when_none_is_given() -> None:
    options = ChannelOptions(unary_timeout_s=70, stream_timeout_s=400)
    async with echo() as server, open_channel(server.endpoint, options) as channel:
        remaining = {shape: float((await server.call(channel, shape, "deadline"))[0]) for shape in SHAPES}
    assert 10 < remaining.pop("unary_unary") <= 70.1
    assert all(300 < value <= 402 for value in remaining.values())


async def test_the_tenant_travels_and_a_call_may_override_it() -> None:
    options = ChannelOptions(tenant=TenantId("acme"))
    async with echo() as server, open_channel(server.endpoint, options) as channel:
        assert await server.call(channel, "unary_unary", "tenant") == ["acme"]
        other = [("hotslot-tenant", "globex")]
        assert await server.call(channel, "unary_unary", "tenant", metadata=other) == ["globex"]
        await until(lambda: len(server.records) == 2)
        assert [r.tenant for r in server.records] == ["acme", "globex"]


async def test_a_call_without_a_tenant_is_the_default_tenants() -> None:
    async with echo() as server, grpc.aio.insecure_channel(server.endpoint) as channel:
        assert await server.call(channel, "unary_unary", "tenant") == ["default"]


@pytest.mark.parametrize("values", [["Not A Tenant"], [""], ["a", "b"]])
async def test_a_malformed_tenant_is_refused_before_the_handler_runs(values: list[str]) -> None:
    async with echo() as server, grpc.aio.insecure_channel(server.endpoint) as channel:
        with pytest.raises(InvalidRequestError) as failure:
            await server.call(channel, "unary_unary", "x", metadata=[("hotslot-tenant", v) for v in values])
        assert failure.value.fields[0].field == "hotslot-tenant"
        assert server.servicer.calls == 0


async def test_the_blocking_channel_behaves_the_same() -> None:
    async with echo() as server:

        def work() -> tuple[str, str, HotslotError]:
            with open_blocking_channel(server.endpoint, ChannelOptions(tenant=TenantId("acme"))) as channel:
                method = channel.unary_unary(
                    f"/{NAME}/unary_unary", StringValue.SerializeToString, StringValue.FromString
                )
                stream = channel.unary_stream(
                    f"/{NAME}/unary_stream", StringValue.SerializeToString, StringValue.FromString
                )
                answers = [answer.value for answer in stream(StringValue(value="streamed"))]
                try:
                    method(StringValue(value="missing"))
                except grpc.RpcError as exc:
                    return method(StringValue(value="tenant")).value, answers[0], from_rpc_error(exc)
            raise AssertionError("no error was raised")

        tenant, streamed, error = await asyncio.to_thread(work)
    assert (tenant, streamed) == ("acme", "streamed")
    assert isinstance(error, AdapterNotFoundError)


async def test_only_calls_that_are_safe_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    async with echo() as server:
        async with open_channel(server.endpoint) as channel:
            with pytest.raises(StoreUnavailableError):
                await server.call(channel, "unary_unary", "unavailable twice")
            assert server.servicer.calls == 1
        monkeypatch.setitem(SAFE_TO_RETRY, NAME, ("unary_unary",))
        server.servicer.calls = 0
        async with open_channel(server.endpoint) as channel:
            assert await server.call(channel, "unary_unary", "unavailable twice") == ["unavailable twice"]
            assert server.servicer.calls == 3


def test_what_is_retried_exists() -> None:
    from hotslot.pb.hotslot.fleet.v1 import fleet_pb2
    from hotslot.pb.hotslot.placement.v1 import placement_pb2
    from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, blob_pb2, compiled_code_pb2
    from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2, inference_pb2

    stores = (placement_pb2, fleet_pb2, adapter_store_pb2, blob_pb2, compiled_code_pb2)
    known = {
        service.full_name: set(service.methods_by_name)
        for pb2 in (*stores, adapter_control_pb2, inference_pb2, health_pb2)
        for service in pb2.DESCRIPTOR.services_by_name.values()
    }
    for name, methods in SAFE_TO_RETRY.items():
        assert set(methods) <= known[name]


async def test_health_follows_readiness_and_liveness_does_not() -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with echo() as server:
        for name in ("", READINESS, LIVENESS, NAME):
            assert await health(server.endpoint, name) == serving
        await server.server.set_ready(False)
        for name in ("", READINESS, NAME):
            assert await health(server.endpoint, name) == not_serving
        assert await health(server.endpoint, LIVENESS) == serving


async def test_reflection_lists_the_services() -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    async with echo() as server:

        def names() -> list[str]:
            with grpc.insecure_channel(server.endpoint) as channel:
                return list(ProtoReflectionDescriptorDatabase(channel).get_services())

        assert NAME in await asyncio.to_thread(names)


async def test_a_taken_port_is_a_clear_error() -> None:
    async with echo() as server:
        with pytest.raises(OSError, match=f"cannot listen on {server.endpoint}"):
            async with echo(ServerOptions(address=server.endpoint)):
                pass
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", server.server.port))


async def test_stopping_ends_readiness_first_and_lets_running_calls_finish() -> None:
    async with asyncio.timeout(60):
        async with echo(ServerOptions(drain_delay_s=0.3, grace_s=10)) as server:
            channel = open_channel(server.endpoint)
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=READINESS))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            method = channel.unary_stream(
                f"/{NAME}/unary_stream", StringValue.SerializeToString, StringValue.FromString
            )
            running = method(StringValue(value="flood"))
            await running.read()
            stopping = asyncio.create_task(server.server.stop())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            # In the delay new calls are still served; a running one goes on to the end of the grace.
            assert await server.call(channel, "unary_unary", "still here") == ["still here"]
            for _ in range(3):
                assert await running.read()
            running.cancel()
            watch.cancel()
            await stopping
            await channel.close()


async def test_connections_that_reach_their_age_cost_no_call() -> None:
    options = ServerOptions(max_connection_age_s=0.1, grace_s=0.2)
    async with echo(options) as server, open_channel(server.endpoint) as channel:
        deadline = asyncio.get_running_loop().time() + 0.8
        while asyncio.get_running_loop().time() < deadline:
            assert await server.call(channel, "unary_unary", "hello") == ["hello"]
            assert await server.call(channel, "unary_stream", "hello") == ["hello"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_signal_is_awaited_once_and_a_second_one_ends_the_process(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    waiting = asyncio.create_task(stop_signal())
    await until(lambda: signal.getsignal(number) is not before)
    os.kill(os.getpid(), number)
    assert await asyncio.wait_for(waiting, 60) is number
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
