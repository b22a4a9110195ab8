"""A whole worker over real gRPC sockets, with the real engine and a model that echoes its adapters."""

from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from hotslot.contract.placement import Tier
from hotslot.ids import DEFAULT_TENANT, TenantId, new_worker_id
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2_grpc as control_grpc
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.rpc.message_sizes import MAX_GENERATE_BYTES
from shared.identity.authenticator import opened_authenticator
from shared.quotas.gate import QuotaGate
from shared.server.grpc_server import RpcServer, ServerOptions, serve
from shared.server.stream_places import STALL_S
from shared.transport_settings import MAX_CALLS_PER_S, Transport
from tests.support.echo_model import EchoModel
from worker_service.adapters.disk_tier import DiskOptions
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.adapters.store_client import StoreTimeouts, StoreView
from worker_service.app import services
from worker_service.assembly import AssemblyOptions, assemble
from worker_service.front.worker import ServingParts, ServingWorker

ADDRESS = "127.0.0.1"


@dataclass
class Generated:
    """A whole stream, put together."""

    started: pb.GenerateStarted
    texts: dict[int, str] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[pb.TokenLogprob]] = field(default_factory=dict)
    finished: dict[int, pb.GenerateFinished] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Of the only choice."""
        return self.texts[0]


class Calls:
    """What a client of one tenant calls."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inference: Any = pb_grpc.InferenceServiceStub(channel)
        self.control: Any = control_grpc.AdapterControlServiceStub(channel)

    async def generate(self, *adapters: str, **fields: Any) -> Generated:
        """Generate to the end; adapters are written `reference` or `reference=weight`."""
        generated: Generated | None = None
        async for message in self.inference.Generate(make_request(*adapters, **fields), timeout=60):
            if message.WhichOneof("event") == "started":
                assert generated is None, "started comes once and first"
                generated = Generated(message.started)
                continue
            assert generated is not None, "started comes first"
            chunk, finished = message.chunk, message.finished
            if message.WhichOneof("event") == "chunk":
                generated.texts[chunk.choice] = generated.texts.get(chunk.choice, "") + chunk.text
                generated.token_ids.setdefault(chunk.choice, []).extend(chunk.token_ids)
                generated.logprobs.setdefault(chunk.choice, []).extend(chunk.logprobs)
            else:
                generated.finished[finished.choice] = finished
        assert generated is not None
        return generated

    async def load(self, reference: str, **fields: Any) -> control_pb.LoadAdapterResponse:
        """LoadAdapter."""
        response: control_pb.LoadAdapterResponse = await self.control.LoadAdapter(
            control_pb.LoadAdapterRequest(reference=reference, **fields), timeout=60
        )
        return response

    async def list(self) -> list[control_pb.LoadedAdapter]:
        """ListAdapters."""
        response = await self.control.ListAdapters(control_pb.ListAdaptersRequest(), timeout=60)
        return list(response.adapters)

    async def status(self) -> control_pb.GetWorkerStatusResponse:
        """GetWorkerStatus."""
        response: control_pb.GetWorkerStatusResponse = await self.control.GetWorkerStatus(
            control_pb.GetWorkerStatusRequest(), timeout=60
        )
        return response


def make_request(*adapters: str, **fields: Any) -> pb.GenerateRequest:
    """A request for text `hello` unless the fields say something else."""
    if not {"text", "chat", "tokens"} & fields.keys():
        fields["text"] = "hello"
    return pb.GenerateRequest(adapters=list(_selections(adapters)), **fields)


def _selections(adapters: Sequence[str]) -> Iterator[pb.AdapterSelection]:
    for adapter in adapters:
        reference, equals, weight = adapter.partition("=")
        yield pb.AdapterSelection(reference=reference, weight=float(weight) if equals else None)


@dataclass
class RunningWorker:
    """A worker that serves."""

    worker: ServingWorker
    parts: ServingParts
    server: RpcServer
    store: StoreView
    model: EchoModel
    stack: AsyncExitStack

    async def calls(self, tenant: TenantId = DEFAULT_TENANT) -> Calls:
        """A client; no retries, so that a test sees every error."""
        channel = open_channel(f"{ADDRESS}:{self.server.port}", ChannelOptions(tenant=tenant, max_attempts=1))
        return Calls(await self.stack.enter_async_context(channel))

    def assert_nothing_is_held(self) -> None:
        """Whatever requests held is free again."""
        assert self.worker.in_flight == 0
        assert self.parts.engine.open_sequences == 0
        tiers = self.parts.provider.tiers
        told = tiers.holdings.residency(0, lambda digest: 0.0, lambda ranks: 1)
        in_memory = {it.digest for it in told if it.tier is not Tier.DISK}
        assert in_memory == set(tiers.holdings.evictable())
        assert tiers.num_loading == 0


@asynccontextmanager
async def run_worker(
    model: EchoModel,
    store_endpoint: str,
    *,
    host_cache_bytes: int = 2**20,
    references: ReferenceLimits | None = None,
    timeouts: StoreTimeouts | None = None,
    disk: DiskOptions | None = None,
    stall_s: float = STALL_S,
    gate: QuotaGate | None = None,
    principals: Path | None = None,
) -> AsyncIterator[RunningWorker]:
    """A worker over the model until the block is left; it knows its callers by a file of principals."""
    worker = ServingWorker(new_worker_id())
    rates = gate.rates if gate is not None else None
    options = AssemblyOptions(host_cache_bytes, references=references or ReferenceLimits(), disk=disk, rates=rates)
    timeouts = timeouts or StoreTimeouts(call_s=2.0, chunk_s=2.0, backoff_s=0.01)
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(store_endpoint, ChannelOptions(max_attempts=1)))
        executor = stack.enter_context(ThreadPoolExecutor(2))
        store = StoreView(channel, model.spec.digest, timeouts)
        parts, engine = assemble(model, worker.worker_id, store, executor, options)
        engine.start(parts.engine.on_events, parts.engine.on_death)
        stack.callback(engine.stop)
        stack.callback(model.runner.gate.set)
        stack.push_async_callback(parts.provider.close)
        stack.callback(parts.generation.encoder.close)
        served = services(worker)
        server = await stack.enter_async_context(
            serve(
                served,
                ServerOptions(
                    grace_s=0.5,
                    stall_s=stall_s,
                    max_request_bytes=MAX_GENERATE_BYTES,
                    transport=Transport(max_calls_per_s=MAX_CALLS_PER_S),
                ),
                observers=(),
                quotas=gate,
                authenticator=await stack.enter_async_context(opened_authenticator(principals)),
            )
        )
        worker.become_ready(parts)
        await server.set_ready(True)
        yield RunningWorker(worker, parts, server, store, model, stack)
