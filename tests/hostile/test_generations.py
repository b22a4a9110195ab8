"""A reader of a generation that sleeps holds neither rows nor blocks, and its stream ends in time."""

import asyncio
from typing import Any

import grpc
import pytest

from hotslot.errors import StreamStalledError
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.status import from_rpc_error
from shared.server.grpc_server import ServerOptions, serve
from tests.support.echo_model import echo_model
from tests.support.echo_worker import make_request, run_worker
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until

pytestmark = pytest.mark.integration

NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536), ("grpc.use_local_subchannel_pool", 1)]


async def read_all(call: Any) -> None:
    """Take all that still comes."""
    while await call.read():
        pass


async def test_readers_that_sleep_end_and_hold_nothing_while_others_are_answered() -> None:
    request = make_request(
        text="hello",
        base_only=True,
        num_choices=4,
        stop=pb.StopConditions(max_tokens=480, ignore_eos=True),
        logprobs=pb.LogprobOptions(enabled=True, num_alternatives=20),
    )
    async with (
        serve(MemoryStore().services(), ServerOptions(grace_s=0.1), observers=()) as store,
        run_worker(echo_model(), f"127.0.0.1:{store.port}", stall_s=0.5) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}", options=NARROW) as channel,
    ):
        sleepers = [pb_grpc.InferenceServiceStub(channel).Generate(request) for _ in range(3)]
        for call in sleepers:
            await call.read()
        calls = await running.calls()
        answers = await asyncio.gather(*(calls.generate(base_only=True) for _ in range(4)))
        assert all(answer.finished for answer in answers)
        await until(lambda: running.worker.in_flight == 0)
        running.assert_nothing_is_held()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await read_all(sleepers[0])
        assert isinstance(from_rpc_error(ended.value), StreamStalledError)
        for call in sleepers:
            call.cancel()
