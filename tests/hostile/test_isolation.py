"""One caller floods, under whatever names; another one's requests and streams go on. `tools/bench/isolation.py` is the
longer form, with figures.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotslot.formats.principals import Scope
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, adapter_store_pb2_grpc
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.stub_method import Metadata
from hotslot.rpc.tenant import TENANT_KEY
from shared.server.grpc_server import ServerOptions, serve
from tests.support.echo_model import UNHURRIED_STEP_S, echo_model
from tests.support.echo_worker import RunningWorker, make_request, run_worker
from tests.support.memory_store import MemoryStore
from tests.support.principals import Roster, bearer
from tests.support.store import open_store
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.integration

LOOSE_S = 10.0
"""Longest time to a first token, on a machine that does other things; one of the long requests takes 24 seconds."""


class Callers:
    """A quiet tenant, a loud one, and a principal that may name any tenant, and invents them."""

    def __init__(self, folder: Path) -> None:
        self.roster = Roster(folder / "principals.json")
        self.roster.add("quiet", (Scope.USE, Scope.READ, Scope.PUBLISH), ("quiet",))
        self.roster.add("loud", (Scope.USE, Scope.READ, Scope.PUBLISH), ("loud",))
        self.roster.add("inventor", (Scope.USE, Scope.READ, Scope.PUBLISH), ("*",))

    def metadata(self, name: str, tenant: str = "") -> Metadata:
        return (bearer(self.roster.tokens[name]), *(((TENANT_KEY, tenant),) if tenant else ()))


def long_request() -> pb.GenerateRequest:
    stop = pb.StopConditions(max_tokens=480, ignore_eos=True)
    return make_request(text="endless", base_only=True, stop=stop)


@asynccontextmanager
async def flooded_worker(folder: Path) -> AsyncIterator[tuple[RunningWorker, Any, Callers]]:
    """A worker of four rows, with its stub and callers; each token takes 50 ms."""
    callers, model = Callers(folder), echo_model(step_s=UNHURRIED_STEP_S, max_waiting=64)
    async with (
        serve(MemoryStore().services(), ServerOptions(grace_s=0.1), observers=()) as store,
        run_worker(model, f"127.0.0.1:{store.port}", principals=callers.roster.path) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}") as channel,
    ):
        yield running, pb_grpc.InferenceServiceStub(channel), callers


async def first_token_s(stub: Any, metadata: Metadata) -> float:
    began_s = time.monotonic()
    call = stub.Generate(make_request(base_only=True), metadata=metadata, timeout=120)
    await call.read()
    took_s = time.monotonic() - began_s
    while await call.read() is not grpc.aio.EOF:
        pass
    return took_s


async def begun(stub: Any, metadata: list[Metadata]) -> list[Any]:
    """Long requests, as many as there are callers, that are on their way."""
    calls = [stub.Generate(long_request(), metadata=each, timeout=120) for each in metadata]
    await asyncio.sleep(0.3)
    return calls


@pytest.mark.parametrize("kind", ["long requests", "invented tenants"])
async def test_floods_of_one_caller_do_not_make_another_wait(tmp_path: Path, kind: str) -> None:
    async with flooded_worker(tmp_path) as (running, stub, callers):
        quiet = callers.metadata("quiet")
        await first_token_s(stub, quiet)
        flood = (
            [callers.metadata("loud")] * 64
            if kind == "long requests"
            else [callers.metadata("inventor", f"t{number}") for number in range(200)]
        )
        calls = await begun(stub, flood)
        times = [await first_token_s(stub, quiet) for _ in range(10)]
        # Four rows of long requests would be free after 24 seconds each.
        assert sorted(times)[5] < LOOSE_S
        assert max(times) < 2 * LOOSE_S
        for call in calls:
            call.cancel()
        await until(lambda: running.worker.in_flight == 0)
        running.assert_nothing_is_held()


async def test_requests_that_are_cancelled_at_once_hold_up_no_other(tmp_path: Path) -> None:
    async with flooded_worker(tmp_path) as (running, stub, callers):
        loud, quiet = callers.metadata("loud"), callers.metadata("quiet")
        await first_token_s(stub, quiet)

        async def cancel_many() -> None:
            for _ in range(40):
                calls = [stub.Generate(long_request(), metadata=loud) for _ in range(25)]
                await asyncio.sleep(0.01)
                for call in calls:
                    call.cancel()

        flooding = asyncio.create_task(cancel_many())
        times = [await first_token_s(stub, quiet) for _ in range(5)]
        await flooding
        assert sorted(times)[2] < LOOSE_S
        await until(lambda: running.worker.in_flight == 0)
        running.assert_nothing_is_held()


async def test_watches_under_invented_tenants_leave_room_for_another_caller(tmp_path: Path) -> None:
    callers = Callers(tmp_path)
    async with (
        open_store(tmp_path / "data", max_watches=9, principals_file=callers.roster.path) as store,
        grpc.aio.insecure_channel(store.endpoint) as channel,
    ):
        stub: Any = adapter_store_pb2_grpc.AdapterStoreServiceStub(channel)
        request = adapter_store_pb2.WatchAdaptersRequest()
        held = [
            stub.WatchAdapters(request, metadata=callers.metadata("inventor", f"t{number}")) for number in range(40)
        ]

        async def are_refused() -> bool:
            return [call.done() for call in held].count(True) == 31

        await until_async(are_refused)
        quiet = [stub.WatchAdapters(request, metadata=callers.metadata("quiet")) for _ in range(4)]
        for watch in quiet:
            await asyncio.wait_for(watch.initial_metadata(), 60)
        refused = stub.WatchAdapters(request, metadata=callers.metadata("inventor", "t99"))
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not any(watch.done() for watch in quiet)
        codes = [await call.code() for call in held if call.done()]
        assert codes.count(grpc.StatusCode.UNAVAILABLE) == 4, "those that gave their place are told so"
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 31
        for call in (*held, *quiet):
            call.cancel()
