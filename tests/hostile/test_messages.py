"""Hostile messages to every RPC, made from the protos: a typed status, bounded memory, and others are answered."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor import MethodDescriptor

from hotslot.errors import InvalidRequestError
from hotslot.local.child_processes import free_port
from hotslot.pb.hotslot.store.v1 import blob_pb2, blob_pb2_grpc
from hotslot.rpc.status import from_rpc_error
from shared.server.call_log import CallRecord
from shared.server.grpc_server import ServerOptions, serve, service
from tests.support.request_messages import methods, places
from tests.support.waiting import until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
REPEATED = [place for place in places() if place.field.is_repeated]
MAX_GROWTH_BYTES = 96 * 2**20
"""Some messages of a few MiB, as gRPC receives them; decoding one of them takes up to 300 MiB."""


async def error_of(channel: grpc.aio.Channel, method: MethodDescriptor, data: bytes) -> Any:
    """What a request of these bytes is refused with."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, shape)(path)
    try:
        answer = call(iter([data]) if method.client_streaming else data, timeout=120)
        if method.server_streaming:
            async for _ in answer:
                pass
        else:
            await answer
    except grpc.aio.AioRpcError as exc:
        details, error = exc.details() or "", from_rpc_error(exc)
        is_bounded = len(details) < 1_200
    else:
        raise AssertionError(f"{method.full_name} answered {len(data)} hostile bytes")
    assert is_bounded, details
    return error


class BareServer:
    """A process with every RPC of ours."""

    def __init__(self, process: psutil.Process, port: int) -> None:
        self.process = process
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", 16 * 2**20)]
        )

    @property
    def rss_bytes(self) -> int:
        return int(self.process.memory_info().rss)


@pytest.fixture
def port() -> Iterator[tuple[int, int]]:
    """A process with every RPC of ours: its id, and its port."""
    number = free_port()
    command = [sys.executable, "-m", "tests.support.bare_server", str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert "listening" in process.stdout.readline()
        yield process.pid, number
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
async def server(port: tuple[int, int]) -> AsyncIterator[BareServer]:
    found = BareServer(psutil.Process(port[0]), port[1])
    yield found
    await found.channel.close()


async def test_a_million_empty_entries_in_any_field_harm_neither_the_server_nor_its_callers(server: BareServer) -> None:
    innocent = next(method for method in methods() if method.name == "GetAdapter")
    before_bytes = server.rss_bytes

    async def call_innocently() -> float:
        """Seconds until the answer to a call that is sent while the server reads the message."""
        began_s = time.monotonic()
        error = await error_of(server.channel, innocent, b"\x0a\x03bot")
        assert type(error).__name__ == "NotImplementedYetError"
        return time.monotonic() - began_s

    answered_s: list[float] = []
    for place in REPEATED:
        sending = asyncio.create_task(error_of(server.channel, place.method, place.empty_entries(2**20)))
        await asyncio.sleep(0)
        answered_s.append(await call_innocently())
        error = await sending
        assert isinstance(error, InvalidRequestError), f"{place}: {error!r}"
        (problem,) = error.fields
        assert problem.field == place.path
        assert problem.description.startswith("found at least ")
    assert server.rss_bytes - before_bytes < MAX_GROWTH_BYTES
    assert len(answered_s) == len(REPEATED) > 10
    # Decoding any one of these messages holds the event loop for up to a second, on a machine without other work.
    assert sorted(answered_s)[len(answered_s) // 2] < 0.5


async def test_bytes_that_are_no_message_get_a_typed_status_from_every_rpc(server: BareServer) -> None:
    for method in methods():
        for data in (b"\x0a\x10x", b"\xff" * 64, os.urandom(3) + b"\x07" * 5_000):
            error = await error_of(server.channel, method, data)
            assert isinstance(error, InvalidRequestError), f"{method.full_name}: {error!r}"
            assert method.input_type.full_name in error.message


async def test_a_message_that_cannot_be_decoded_is_counted_and_logged_as_any_other_call() -> None:
    records: list[CallRecord] = []
    bare = type("Bare", (blob_pb2_grpc.BlobServiceServicer,), {})()
    blobs = service(blob_pb2, "BlobService", blob_pb2_grpc.add_BlobServiceServicer_to_server, bare)
    async with serve([blobs], ServerOptions(grace_s=0.1), observers=[records.append]) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            for method in methods():
                if method.containing_service.name == "BlobService":
                    await error_of(channel, method, b"\x0a\x10x")
        await until(lambda: len(records) == 4)
    # The base class's handler of a client's stream asks for no message.
    refused = [record for record in records if record.method != "/hotslot.store.v1.BlobService/WriteBlob"]
    assert len(refused) == 3
    assert {(record.code, record.reason) for record in refused} == {
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    }
