"""FleetService under its names now and the earlier ones: both ages of workers and stores, in every pairing."""

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotslot.ids import DEFAULT_TENANT, digest_of
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2 as pb
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2_grpc as pb_grpc
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc as store_grpc
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2 as code_pb
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2_grpc as code_grpc
from shared.server.grpc_server import ServerOptions, serve, service
from store_service.rpc.fleet_servicer import EARLIER_NAMES
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import StoreClient, open_store
from worker_service.adapters.fleet_calls import EARLIER_SERVICES, FleetCalls

KEY, CODE = digest_of(b"key"), b"native code" * 1000
METADATA = (("hotslot-tenant", str(DEFAULT_TENANT)),)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreClient]:
    async with open_store(tmp_path, compiled_code_bytes=2**20) as client:
        await client.register()
        await client.push(adapter(), "bot")
        await client.call("SetAdapterPolicy", store_pb.SetAdapterPolicyRequest(adapter="bot", pinned=True))
        yield client


def written() -> list[tuple[int, bytes]]:
    return [(len(CODE), CODE[:5_000]), (0, CODE[5_000:])]


def shape(message: Any) -> list[tuple[Any, ...]]:
    """The message as it is on the wire and in JSON: its fields, and those of messages in it."""
    fields = []
    for field in message.fields:
        inner = field.message_type
        is_ours = inner is not None and inner.full_name.startswith("hotslot.")
        kind = shape(inner) if is_ours else inner and inner.full_name
        fields.append((field.name, field.number, field.type, field.is_repeated, field.has_presence, kind))
    return fields


def test_earlier_names_have_the_same_messages_on_the_wire() -> None:
    now = pb.DESCRIPTOR.services_by_name["FleetService"].methods_by_name
    earlier = {
        method.name: method
        for file in (store_pb, code_pb)
        for service_now in file.DESCRIPTOR.services_by_name.values()
        for method in service_now.methods
        if method.name in EARLIER_NAMES.get(service_now.full_name, ())
    }
    assert set(earlier) == set(now) == set(EARLIER_SERVICES)
    for name, method in dict(now).items():
        assert shape(method.input_type) == shape(earlier[name].input_type)
        assert shape(method.output_type) == shape(earlier[name].output_type)
        assert earlier[name].GetOptions().deprecated
        assert name in EARLIER_NAMES[EARLIER_SERVICES[name]]


async def test_a_worker_of_an_earlier_release_finds_everything_under_the_earlier_names(store: StoreClient) -> None:
    adapters: Any = store_grpc.AdapterStoreServiceStub(store.channel)
    code: Any = code_grpc.CompiledCodeServiceStub(store.channel)
    now: Any = pb_grpc.FleetServiceStub(store.channel)
    first = (await adapters.IssueEpoch(store_pb.IssueEpochRequest())).epoch
    assert first < (await now.IssueEpoch(pb.IssueEpochRequest())).epoch
    base = base_spec().digest
    pinned = await adapters.ListPinnedVersions(store_pb.ListPinnedVersionsRequest(base_model_digest=base))
    same = await now.ListPinnedVersions(pb.ListPinnedVersionsRequest(base_model_digest=base))
    assert [version.policy.adapter for version in pinned.versions] == ["bot"]
    assert pinned.SerializeToString() == same.SerializeToString()
    messages = [
        code_pb.WriteCompiledCodeRequest(key=KEY, digest=digest_of(CODE), size_bytes=size_bytes, data=data)
        for size_bytes, data in written()
    ]
    await code.WriteCompiledCode(iter(messages), metadata=METADATA)
    for stub, request in ((code, code_pb.ReadCompiledCodeRequest(key=KEY)), (now, pb.ReadCompiledCodeRequest(key=KEY))):
        assert b"".join([m.data async for m in stub.ReadCompiledCode(request, metadata=METADATA)]) == CODE


async def test_the_store_says_by_health_and_reflection_that_it_serves_both(store: StoreClient) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub: Any = health_pb2_grpc.HealthStub(store.channel)
    for name in ("hotslot.fleet.v1.FleetService", *EARLIER_NAMES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


class EarlierStore:
    """An earlier release's store, as far as workers ask it: it knows no FleetService."""

    def __init__(self) -> None:
        self.code: dict[str, bytes] = {}

    async def IssueEpoch(self, request: store_pb.IssueEpochRequest, context: Any) -> Any:
        return store_pb.IssueEpochResponse(epoch=7)

    async def ListPinnedVersions(self, request: store_pb.ListPinnedVersionsRequest, context: Any) -> Any:
        version = store_pb.PinnedVersion(tenant="acme", digest=request.base_model_digest)
        return store_pb.ListPinnedVersionsResponse(versions=[version])

    async def ReadCompiledCode(self, request: code_pb.ReadCompiledCodeRequest, context: Any) -> AsyncIterator[Any]:
        for byte in self.code[request.key]:
            yield code_pb.ReadCompiledCodeResponse(data=bytes([byte]))

    async def WriteCompiledCode(self, requests: AsyncIterator[Any], context: Any) -> Any:
        messages = [request async for request in requests]
        self.code[messages[0].key] = b"".join(message.data for message in messages)
        return code_pb.WriteCompiledCodeResponse()

    def __getattr__(self, name: str) -> Any:
        async def unknown(request: Any, context: Any) -> None:
            raise AssertionError(f"{name} was called")

        return unknown


async def test_a_worker_starts_before_its_store_is_updated() -> None:
    earlier = EarlierStore()
    services = [
        service(store_pb, "AdapterStoreService", store_grpc.add_AdapterStoreServiceServicer_to_server, earlier),
        service(code_pb, "CompiledCodeService", code_grpc.add_CompiledCodeServiceServicer_to_server, earlier),
    ]
    async with (
        serve(services, ServerOptions()) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        calls = FleetCalls(channel)
        assert await calls.issue_epoch(5.0) == 7
        page = await calls.pinned(pb.ListPinnedVersionsRequest(base_model_digest="d"), 5.0)
        assert [(version.tenant, version.digest) for version in page.versions] == [("acme", "d")]

        async def messages() -> AsyncGenerator[pb.WriteCompiledCodeRequest, None]:
            for size_bytes, data in written():
                yield pb.WriteCompiledCodeRequest(key=KEY, digest="d", size_bytes=size_bytes, data=data)

        await calls.write_code(messages, 5.0, METADATA)
        assert earlier.code == {KEY: CODE}
        earlier.code[KEY] = b"code"
        reading = calls.read_code(pb.ReadCompiledCodeRequest(key=KEY), 5.0, METADATA)
        assert b"".join([message.data async for message in reading]) == b"code"


async def test_a_refusal_is_not_asked_for_again_by_the_earlier_name(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        calls = FleetCalls(store.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in calls.read_code(pb.ReadCompiledCodeRequest(key=KEY), 5.0, METADATA):
                pass
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
