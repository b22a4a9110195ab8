"""Floods of calls that cost their client nothing are refused before they are read, and cut off; others are served."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotslot.errors import (
    BadOffsetError,
    DigestMismatchError,
    HotslotError,
    NotImplementedYetError,
    QueueFullError,
    QuotaExceededError,
    UnauthenticatedError,
)
from hotslot.formats.principals import Scope
from hotslot.pb.hotslot.store.v1 import blob_pb2, blob_pb2_grpc
from hotslot.rpc.status import from_rpc_error
from hotslot.rpc.tenant import TENANT_KEY
from shared.identity.authenticator import opened_authenticator
from shared.quotas.gate import QuotaGate
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates
from shared.server import flood_connections, late_refusals, paced_calls
from shared.server.counters import BOUND_REFUSALS, CUT_OFF, Counters
from shared.server.flood_connections import ADDRESSES, CONNECTIONS, REFUSED_FOR_S
from shared.server.grpc_server import RpcServer, ServerOptions, serve, service
from shared.server.paced_calls import SETTING
from shared.transport_settings import Transport
from tests.hostile.test_connections import Blobs, dialled, status
from tests.support.one_moment import one_moment
from tests.support.principals import Roster, bearer
from tests.support.raw_http2 import RawConnection, raw_connection
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.integration

PER_S = 50.0
METHOD = "/hotslot.store.v1.BlobService/GetWriteStatus"
MESSAGE = blob_pb2.GetWriteStatusRequest(digest="x").SerializeToString()


class PacedServer:
    """A server whose callers may make few calls, and their tokens."""

    def __init__(self, server: RpcServer, counters: Counters, roster: Roster) -> None:
        self.server, self.counters, self.roster = server, counters, roster
        self.endpoint = f"127.0.0.1:{server.port}"

    def token(self, name: str) -> list[tuple[str, str]]:
        return [bearer(self.roster.tokens[name])]

    def count(self, label: str) -> int:
        return self.counters.snapshot().get((BOUND_REFUSALS, label), 0)


@asynccontextmanager
async def paced(
    folder: Path, blobs: Blobs | None = None, per_s: float = PER_S, *, health: bool = False
) -> AsyncIterator[PacedServer]:
    roster, limits, counters = Roster(folder / "principals.json"), TenantLimits(), Counters()
    for name in ("quiet", "loud", "late"):
        roster.add(name, (Scope.PUBLISH,), (name,))
    roster.add("worker", (Scope.WORKER, Scope.PUBLISH), ("*",))
    add = blob_pb2_grpc.add_BlobServiceServicer_to_server
    served = service(blob_pb2, "BlobService", add, blobs or Blobs())
    transport = Transport(max_calls_per_s=per_s, health_address="127.0.0.1:0" if health else "")
    options = ServerOptions(grace_s=0.1, transport=transport)
    gate = QuotaGate(limits, Rates(limits), counters)
    async with (
        opened_authenticator(roster.path) as authenticator,
        serve([served], options, observers=(), quotas=gate, authenticator=authenticator) as server,
    ):
        yield PacedServer(server, counters, roster)


async def pour(
    connection: RawConnection, metadata: list[tuple[str, str]], num_calls: int, method: str = METHOD
) -> None:
    """Calls that are given up as soon as they are made, until the server closes the connection."""
    block = connection.block(method, metadata)
    try:
        for _ in range(num_calls // 10):
            await connection.send(b"".join(connection.cancelled_call(block, MESSAGE) for _ in range(10)))
            await asyncio.sleep(0.001)
    except OSError:
        return


async def test_a_call_too_many_hears_when_to_come_again_and_later_ones_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_refusals, "HEARS_AFTER_S", 0.3)
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        loud = running.token("loud")
        await status(stub, metadata=loud)
        began_s = time.monotonic()
        with one_moment():
            ended = await asyncio.gather(*(status(stub, metadata=loud) for _ in range(70)), return_exceptions=True)
        refused = [from_rpc_error(each) for each in ended if isinstance(each, grpc.RpcError)]
        assert refused
        assert len(refused) < 70
        assert {type(error) for error in refused} == {QuotaExceededError}
        assert all(isinstance(e, QuotaExceededError) and e.retry_after_s and e.subject == SETTING for e in refused)
        assert time.monotonic() - began_s > 0.25
        assert running.count(SETTING) == len(refused)
        await status(stub, metadata=running.token("quiet"))

        async def is_answered() -> bool:
            try:
                await status(stub, metadata=loud)
            except grpc.aio.AioRpcError:
                return False
            return True

        await until_async(is_answered)


@pytest.mark.parametrize("token", ["known", "its own, which was never read", "none", "invented"])
async def test_a_flood_that_is_given_up_at_once_is_cut_off_and_others_are_served(tmp_path: Path, token: str) -> None:
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        await status(stub, metadata=running.token("quiet"))
        metadata = {"none": [], "invented": [bearer("hs1_0011223344556677_0123")]}.get(token, running.token("loud"))
        if token == "known":
            await status(stub, metadata=metadata)
        async with raw_connection(running.endpoint) as first, raw_connection(running.endpoint) as second:
            await asyncio.gather(pour(first, metadata, 2_000), pour(second, metadata, 2_000))
            await until(lambda: first.is_closed and second.is_closed)
        assert running.count(CONNECTIONS) == 2
        await status(stub, metadata=running.token("quiet"))
        # Nor is one kept out who comes now, from the same address.
        await status(stub, metadata=running.token("late"))


async def test_guesses_of_tokens_are_refused_unread_once_too_many_came_from_an_address(tmp_path: Path) -> None:
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        guesses = [[bearer(f"hs1_00112233445566{number:02}_0123")] for number in range(55)]
        calls = [stub.GetWriteStatus(blob_pb2.GetWriteStatusRequest(), metadata=each) for each in guesses]
        ended = [from_rpc_error(e) for e in await asyncio.gather(*calls, return_exceptions=True)]  # type: ignore[arg-type]
        assert {type(error) for error in ended} == {UnauthenticatedError, QuotaExceededError}
        await status(stub, metadata=running.token("quiet"))


@pytest.mark.parametrize("answered", [("quiet", "loud"), ("quiet",)], ids=["both", "the other alone"])
async def test_a_connection_over_which_others_call_is_not_closed(tmp_path: Path, answered: tuple[str, ...]) -> None:
    async with (
        paced(tmp_path) as running,
        dialled(running.server) as stub,
        raw_connection(running.endpoint) as proxy,
    ):
        await status(stub, metadata=running.token("loud"))
        for name in answered:
            await proxy.send(proxy.call(proxy.block(METHOD, running.token(name)), MESSAGE))
        await until(lambda: proxy.seen["headers"] >= 2 * len(answered))
        await pour(proxy, running.token("loud"), 1_000)
        await until(lambda: running.count(SETTING) > 300)
        before = proxy.seen["headers"]
        await proxy.send(proxy.call(proxy.block(METHOD, running.token("quiet")), MESSAGE))
        await until(lambda: proxy.seen["headers"] > before)
        assert not proxy.is_closed
        assert not running.count(CONNECTIONS)


async def test_calls_whose_messages_never_come_are_few_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced_calls, "MAX_EXPECTED", 2)
    monkeypatch.setattr(paced_calls, "MAX_UNREAD", 4)
    monkeypatch.setattr(paced_calls, "MESSAGE_S", 2.0)
    async with paced(tmp_path, per_s=1_000.0) as running, dialled(running.server) as stub:
        await status(stub, metadata=running.token("loud"))
        async with raw_connection(running.endpoint) as connection:
            block = connection.block(METHOD, running.token("loud"))
            await connection.send(b"".join(connection.call(block, None) for _ in range(14)))
            await until(lambda: connection.seen["headers"] >= 8)
            assert running.count(SETTING) == 8
            await status(stub, metadata=running.token("quiet"))
            await until(lambda: connection.seen["headers"] == 12)
        assert running.counters.snapshot()[CUT_OFF, "stalled"] == 4
        await status(stub, metadata=running.token("loud"))


class BrokenUploads(Blobs):
    """Refuses each upload by its first byte, or by its end."""

    def __init__(self, error: HotslotError) -> None:
        super().__init__()
        self.error = error

    async def WriteBlob(self, request: Any, context: Any) -> Any:
        async for _ in request:
            raise self.error


@pytest.mark.parametrize(
    ("error", "num_taken", "num_sure"),
    [
        (BadOffsetError("upload x", 7, 3), 10, 9),
        (DigestMismatchError("upload x", "blake3:a", "blake3:b"), 10, 9),
        (QueueFullError("too many uploads", subject="uploads"), 3, 2),
        # Each counts for five until its message has come.
        (NotImplementedYetError("WriteBlob"), 50, 45),
    ],
    ids=["offset", "digest", "no room", "other"],
)
async def test_uploads_that_took_room_for_nothing_count_for_several(
    tmp_path: Path, error: HotslotError, num_taken: int, num_sure: int
) -> None:
    async with paced(tmp_path, BrokenUploads(error)) as running, dialled(running.server) as stub:
        loud = running.token("loud")
        await status(stub, metadata=running.token("loud"))
        began_s, kinds = time.monotonic(), []
        for _ in range(num_taken + 5):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stub.WriteBlob(iter([blob_pb2.WriteBlobRequest(data=b"x")]), metadata=loud)
            kinds.append(type(from_rpc_error(ended.value)))
        took = PER_S * (time.monotonic() - began_s)
        most = (PER_S + took) * num_taken / PER_S + 1
        assert kinds.count(type(error)) <= most
        assert kinds[:num_sure] == [type(error)] * num_sure


async def test_guesses_of_tokens_count_for_several(tmp_path: Path) -> None:
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        began_s, kinds = time.monotonic(), []
        for number in range(15):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await status(stub, metadata=[bearer(f"hs1_00112233445566{number:02}_0123")])
            kinds.append(type(from_rpc_error(ended.value)))
        took = PER_S * (time.monotonic() - began_s)
        assert kinds[:8] == [UnauthenticatedError] * 8
        assert kinds.count(UnauthenticatedError) <= (PER_S + took) / 5 + 1
        await status(stub, metadata=running.token("quiet"))


async def test_services_that_call_for_others_have_no_pace(tmp_path: Path) -> None:
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        metadata = [*running.token("worker"), (TENANT_KEY, "acme")]
        await asyncio.gather(*(status(stub, metadata=metadata) for _ in range(150)))


async def test_a_burst_of_a_second_s_calls_is_answered_whole(tmp_path: Path) -> None:
    async with paced(tmp_path, per_s=200.0) as running, dialled(running.server) as stub:
        loud = running.token("loud")
        await status(stub, metadata=loud)
        await asyncio.gather(*(status(stub, metadata=loud) for _ in range(190)))


async def test_calls_that_run_long_count_once_however_many_run(tmp_path: Path) -> None:
    blobs = Blobs()
    async with paced(tmp_path, blobs) as running, dialled(running.server) as stub:
        loud, slow = running.token("loud"), blob_pb2.GetWriteStatusRequest(digest="slow")
        await status(stub, metadata=loud)
        calls = []
        for number in range(1, 41):
            calls.append(stub.GetWriteStatus(slow, metadata=loud))
            await until(lambda number=number: blobs.running == number)  # type: ignore[misc]
        blobs.go_on.set()
        await asyncio.gather(*calls)


async def test_who_was_cut_off_and_calls_now_and_then_is_let_in_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flood_connections, "CUT_OFF_S", 1.0)
    monkeypatch.setattr(late_refusals, "HEARS_AFTER_S", 0.1)
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        loud = running.token("loud")
        async with raw_connection(running.endpoint) as first:
            await pour(first, loud, 2_000)
            await until(lambda: first.is_closed)
        answered = False
        for _ in range(100):
            await asyncio.sleep(0.3)
            with suppress(grpc.aio.AioRpcError):
                await status(stub, metadata=loud)
                answered = True
                break
        assert answered
        assert running.count(CONNECTIONS) <= 3


async def test_a_flood_with_a_revoked_token_costs_its_former_owner_nothing(tmp_path: Path) -> None:
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        leaked = running.token("loud")
        await status(stub, metadata=leaked)
        running.roster.add("loud", (Scope.PUBLISH,), ("loud",))

        async def is_refused() -> bool:
            try:
                await status(stub, metadata=leaked)
            except grpc.aio.AioRpcError as exc:
                return isinstance(from_rpc_error(exc), UnauthenticatedError)
            return False

        await until_async(is_refused)
        async with raw_connection(running.endpoint) as connection:
            await pour(connection, leaked, 1_000)
            await status(stub, metadata=running.token("loud"))


async def test_calls_that_run_out_of_time_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy server meets a call late, and is given less of its time.
    monkeypatch.setattr(paced_calls, "AT_ONCE_S", 0.01)
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        request = blob_pb2.GetWriteStatusRequest(digest="slow")
        # They take 24 of the 50 of one moment, and 16 more until messages have come; counted for five each, 120.
        with one_moment():
            for _ in range(6):
                calls = [stub.GetWriteStatus(request, metadata=running.token("loud"), timeout=0.5) for _ in range(4)]
                ended = await asyncio.gather(*calls, return_exceptions=True)
                codes = {each.code() for each in ended if isinstance(each, grpc.aio.AioRpcError)}
                assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert not running.count(SETTING)


@pytest.mark.parametrize("per_s", [1.0, 3.0])
async def test_the_least_pace_is_one_too(tmp_path: Path, per_s: float) -> None:
    async with paced(tmp_path, per_s=per_s) as running, dialled(running.server) as stub:
        await status(stub, metadata=running.token("loud"))


async def test_a_caller_that_connects_anew_at_once_finds_no_way_in_for_a_moment_and_connections_that_stand_go_on(
    tmp_path: Path,
) -> None:
    async with paced(tmp_path) as running, dialled(running.server) as stub:
        loud = running.token("loud")
        await status(stub, metadata=running.token("quiet"))
        async with raw_connection(running.endpoint) as first:
            await pour(first, loud, 2_000)
            await until(lambda: first.is_closed)
        began_s, anew = time.monotonic(), []
        while time.monotonic() - began_s < 2 * REFUSED_FOR_S:
            async with raw_connection(running.endpoint) as connection:
                anew.append(time.monotonic())
                await pour(connection, loud, 2_000)
                await until(lambda: connection.is_closed)
        assert len(anew) <= 10, "one that connects at once came some hundred times"
        assert running.count(ADDRESSES)
        await status(stub, metadata=running.token("quiet"))

        async def is_let_in() -> bool:
            try:
                async with dialled(running.server) as another:
                    await status(another, metadata=running.token("late"))
            except grpc.aio.AioRpcError:
                return False
            return True

        await until_async(is_let_in)
