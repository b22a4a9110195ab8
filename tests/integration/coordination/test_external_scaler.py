"""KEDA's interface over a real socket and a real Valkey: what it asks, and what it makes of the answers."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from hotslot.contract.control import WorkerState
from hotslot.errors import CoordinationUnavailableError, HotslotError, InvalidRequestError, NoWorkersError
from hotslot.ids import Digest
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from hotslot.pb.externalscaler import externalscaler_pb2, externalscaler_pb2_grpc
from hotslot.pb.externalscaler import externalscaler_pb2 as pb
from hotslot.pb.hotslot.placement.v1 import placement_pb2, placement_pb2_grpc
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.rpc.status import from_rpc_error
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.fleet.records import ReportedLoad
from shared.server.deadline import HasDeadline
from shared.server.grpc_server import ServerOptions, serve, service
from store_service.placement.fleets import FleetCache
from store_service.placement.scaling import Scaling
from store_service.placement.unserved import UnservedPicks
from store_service.rpc.external_scaler_servicer import ExternalScalerServicer
from store_service.rpc.placement_servicer import PlacementServicer
from tests.integration.coordination.fleet import POOL, joined, resident
from tests.integration.coordination.test_placement_service import TableResolver
from tests.support.patient_redis import patient
from tests.support.waiting import until_async

NAME = "org/model"
REF = pb.ScaledObjectRef(
    name="workers", namespace="ml", scalerMetadata={"baseModel": NAME, "scalerAddress": "store:7400", "activeS": "2"}
)


async def registered(name: str, caller: HasDeadline) -> Sequence[Digest]:
    return [POOL] if name == NAME else []


class Keda:
    """Calls in the way of KEDA: no tenant, no deadline on the stream."""

    def __init__(self, channel: grpc.aio.Channel, redis: RedisConnection) -> None:
        self.stub: Any = externalscaler_pb2_grpc.ExternalScalerStub(channel)
        self.placement: Any = placement_pb2_grpc.PlacementServiceStub(channel)
        self.redis = redis

    async def replicas(self, ref: pb.ScaledObjectRef = REF) -> dict[str, int]:
        """Workers that each measure asks for, as an autoscaler of Kubernetes computes it from average values."""
        found = {}
        for spec in (await self.stub.GetMetricSpec(ref, timeout=60)).metricSpecs:
            request = pb.GetMetricsRequest(scaledObjectRef=ref, metricName=spec.metricName)
            (value,) = (await self.stub.GetMetrics(request, timeout=60)).metricValues
            assert value.metricName == spec.metricName
            assert value.metricValue == math.ceil(value.metricValueFloat)
            found[spec.metricName] = math.ceil(value.metricValueFloat / spec.targetSizeFloat - 1e-9)
        return found

    async def is_active(self) -> bool:
        return bool((await self.stub.IsActive(REF, timeout=60)).result)

    async def refusal(self, call: Any) -> HotslotError:
        with pytest.raises(grpc.RpcError) as caught:
            await call
        return from_rpc_error(caught.value)


@asynccontextmanager
async def running(server: EmbeddedValkey) -> AsyncIterator[Keda]:
    async with RedisConnection(patient(server.url)) as redis:
        await redis.run(lambda client: client.flushall())
        fleets, unserved = FleetCache(Directory(redis)), UnservedPicks()
        placement = PlacementServicer(fleets, TableResolver(), unserved)
        scaler = ExternalScalerServicer(Scaling(fleets, unserved, registered))
        add_placement = placement_pb2_grpc.add_PlacementServiceServicer_to_server
        add_scaler = externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server
        services = [
            service(placement_pb2, "PlacementService", add_placement, placement),
            service(externalscaler_pb2, "ExternalScaler", add_scaler, scaler),
        ]
        async with (
            serve(services, ServerOptions(grace_s=0.1)) as grpc_server,
            open_channel(f"127.0.0.1:{grpc_server.port}", ChannelOptions(max_attempts=1)) as channel,
        ):
            yield Keda(channel, redis)


@pytest.fixture
async def keda(valkey_node: EmbeddedValkey) -> AsyncIterator[Keda]:
    async with running(valkey_node) as it:
        yield it


def test_the_names_on_the_wire_are_those_that_keda_calls() -> None:
    methods = externalscaler_pb2.DESCRIPTOR.services_by_name["ExternalScaler"]
    assert methods.full_name == "externalscaler.ExternalScaler"
    shapes = {m.name: (m.input_type.name, m.output_type.name, m.server_streaming) for m in methods.methods}
    assert shapes == {
        "IsActive": ("ScaledObjectRef", "IsActiveResponse", False),
        "StreamIsActive": ("ScaledObjectRef", "IsActiveResponse", True),
        "GetMetricSpec": ("ScaledObjectRef", "GetMetricSpecResponse", False),
        "GetMetrics": ("GetMetricsRequest", "GetMetricsResponse", False),
    }
    # Bytes as another implementation of the interface writes them: numbers of fields, not names, are the interface.
    written = b"\x0a\x01w\x12\x02ml\x1a\x12\x0a\x09baseModel\x12\x05org/m"
    ref = pb.ScaledObjectRef.FromString(written)
    assert (ref.name, ref.namespace, dict(ref.scalerMetadata)) == ("w", "ml", {"baseModel": "org/m"})
    assert (
        pb.GetMetricsRequest(scaledObjectRef=ref, metricName="r").SerializeToString()
        == b"\x0a\x1b" + written + b"\x12\x01r"
    )
    assert pb.MetricSpec(metricName="r", targetSize=1, targetSizeFloat=2.0).SerializeToString() == (
        b"\x0a\x01r\x10\x01\x19\x00\x00\x00\x00\x00\x00\x00\x40"
    )


async def test_workers_are_asked_for_by_rows_by_waiting_sequences_and_by_slots(keda: Keda) -> None:
    assert await keda.replicas() == {"rows": 0, "waiting": 0, "slots": 0}
    busy = await joined(keda.redis, "w-0", *(resident(number, demand=0.125) for number in range(12)))
    await busy.announce(load=ReportedLoad(16, 8, 16, num_slots=8, free_slots=0))
    expected = {"rows": math.ceil(24 / 16 / 0.7), "waiting": math.ceil(8 / 16 / 0.2), "slots": 2}

    async def asked() -> bool:
        return await keda.replicas() == expected

    await until_async(asked)
    narrow = pb.ScaledObjectRef(scalerMetadata={"baseModel": NAME, "rows": "0.25", "waiting": "0", "slots": "0"})
    assert await keda.replicas(narrow) == {"rows": 6}


async def test_a_pool_is_wanted_while_it_works_and_for_a_while_after_a_request_that_found_no_worker(keda: Keda) -> None:
    stream = keda.stub.StreamIsActive(REF)
    async with asyncio.timeout(60):
        assert (await stream.read()).result is False
        with pytest.raises(grpc.RpcError) as caught:
            await keda.placement.PickWorkers(placement_pb2.PickWorkersRequest(adapters=["a7"]))
        assert isinstance(from_rpc_error(caught.value), NoWorkersError)
        # The pick named an adapter, the trigger the base model's name.
        assert (await stream.read()).result is True
        assert await keda.is_active()
        assert (await stream.read()).result is False
        member = await joined(keda.redis, "w-0")
        await member.announce(load=ReportedLoad(1, 0, 16))
        assert (await stream.read()).result is True
        await member.announce(WorkerState.READY, ReportedLoad(0, 0, 16))
        assert (await stream.read()).result is False
    stream.cancel()


async def test_wrong_metadata_and_measures_are_refused_by_their_names(keda: Keda) -> None:
    nameless = await keda.refusal(keda.stub.IsActive(pb.ScaledObjectRef(name="workers")))
    assert isinstance(nameless, InvalidRequestError)
    assert "baseModel" in nameless.message
    unknown = await keda.refusal(keda.stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=REF, metricName="s0-rows")))
    assert isinstance(unknown, InvalidRequestError)
    assert "rows or waiting or slots" in unknown.message


async def test_a_stream_ends_with_its_reason_when_redis_is_away() -> None:
    with embedded_valkey() as server:
        async with running(server) as keda:
            stream = keda.stub.StreamIsActive(REF)
            assert (await stream.read()).result is False
            server.process.kill()
            async with asyncio.timeout(60):
                refused = await keda.refusal(stream.read())
    assert isinstance(refused, CoordinationUnavailableError)
