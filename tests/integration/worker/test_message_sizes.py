"""A message that is too large is the caller's mistake, at once, on whichever side it is noticed."""

import time

import grpc
import pytest

from hotslot.clients.hotslot import HotslotClient
from hotslot.clients.worker import WorkerClient
from hotslot.contract.generation import ChatMessage, GenerationRequest
from hotslot.errors import HotslotError, InternalError, InvalidRequestError, PromptTooLongError
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.message_sizes import MAX_GENERATE_BYTES, MAX_MESSAGE_BYTES
from hotslot.rpc.status import from_rpc_error, row_for
from shared.server.grpc_server import ServerOptions
from tests.support.echo_worker import Calls, RunningWorker

LARGE, HUGE = MAX_GENERATE_BYTES + 1, MAX_MESSAGE_BYTES + 1


def test_servers_take_what_clients_may_send() -> None:
    assert ChannelOptions().max_message_bytes <= ServerOptions().max_message_bytes
    assert ChannelOptions().max_message_bytes >= MAX_GENERATE_BYTES


@pytest.mark.parametrize("num_bytes", [LARGE, HUGE])
async def test_our_clients_are_told_of_the_size_and_do_not_try_again(
    num_bytes: int, calls: Calls, running: RunningWorker, store_endpoint: str
) -> None:
    endpoint = f"127.0.0.1:{running.server.port}"
    prompts = ("x" * num_bytes, (ChatMessage("user", "x" * num_bytes),))
    async with WorkerClient(endpoint) as worker, HotslotClient(store_endpoint, endpoint, patience_s=120) as hotslot:
        for client in (worker, hotslot):
            for prompt in prompts:
                begun_s = time.monotonic()
                with pytest.raises(InvalidRequestError, match=r"request: found a message of [\d,]+ bytes, at most"):
                    await client.complete(GenerationRequest(prompt))
                assert time.monotonic() - begun_s < 60
    assert (await calls.generate()).text == "base"
    running.assert_nothing_is_held()


async def test_other_clients_get_a_status_with_a_reason_up_to_what_a_message_may_have(running: RunningWorker) -> None:
    unlimited = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}", unlimited) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        for num_bytes, code in ((LARGE, grpc.StatusCode.INVALID_ARGUMENT), (HUGE, grpc.StatusCode.RESOURCE_EXHAUSTED)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Generate(pb.GenerateRequest(text="x" * num_bytes), timeout=60).read()
            assert caught.value.code() is code
            assert row_for(from_rpc_error(caught.value)).reason == "INVALID_REQUEST"


async def test_the_largest_request_that_is_taken_is_judged_by_its_tokens(calls: Calls) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calls.generate(text="x" * (MAX_GENERATE_BYTES - 1_000), tokens=None)
    assert isinstance(from_rpc_error(caught.value), PromptTooLongError)


async def test_an_answer_that_is_too_large_is_no_mistake_of_the_caller(running: RunningWorker) -> None:
    narrow = [("grpc.max_receive_message_length", 10)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}", narrow) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.InferenceServiceStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=60)
    error: HotslotError = from_rpc_error(caught.value)
    assert type(error) is InternalError
    assert "at most 10" in error.message
