"""PlacementService over real gRPC and a real Valkey, with a catalog that is a table."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
import pytest

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import (
    AdapterNotFoundError,
    BaseModelMismatchError,
    CoordinationUnavailableError,
    InvalidPageTokenError,
    InvalidReferenceError,
    InvalidRequestError,
    NoWorkersError,
    RevisionCompactedError,
)
from hotslot.ids import TenantId
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from hotslot.pb.hotslot.placement.v1 import placement_pb2 as pb
from hotslot.pb.hotslot.placement.v1 import placement_pb2_grpc
from hotslot.references import Reference
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.rpc.status import from_rpc_error
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.fleet.records import ReportedLoad, Resident
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy
from shared.server.deadline import HasDeadline
from shared.server.grpc_server import ServerOptions, serve, service
from store_service.placement.fleets import REFRESH_S, FleetCache
from store_service.placement.queries import Wanted
from store_service.rpc.placement_servicer import PlacementServicer
from tests.integration.coordination.fleet import POOL, Member, digest, joined, resident, worker
from tests.support.patient_redis import patient
from tests.support.waiting import until_async

T = TypeVar("T")
OTHER_POOL = digest(999)


class TableResolver:
    """A catalog: `a<n>` is version n of the default pool, `x<n>` of another one; number 77 may be on one worker."""

    def __init__(self) -> None:
        self.waits_s: list[float | None] = []

    async def resolve(self, tenant: TenantId, reference: Reference, caller: HasDeadline) -> Wanted:
        self.waits_s.append(caller.time_remaining())
        name = str(reference.name)
        if tenant != "default" or not name[1:].isdigit():
            raise AdapterNotFoundError(name)
        bounded = ReplicaPolicy(max_replicas=1) if name == "a77" else DEFAULT_REPLICA_POLICY
        return Wanted(digest(int(name[1:])), POOL if name.startswith("a") else OTHER_POOL, bounded)


@dataclass
class Rig:
    stub: Any
    redis: RedisConnection
    endpoint: str
    resolver: TableResolver

    async def call(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc


@asynccontextmanager
async def running(server: EmbeddedValkey, **redis_options: Any) -> AsyncIterator[Rig]:
    async with RedisConnection(patient(server.url, **redis_options)) as redis:
        await redis.run(lambda client: client.flushall())
        resolver = TableResolver()
        servicer = PlacementServicer(FleetCache(Directory(redis)), resolver)
        add = placement_pb2_grpc.add_PlacementServiceServicer_to_server
        services = [service(pb, "PlacementService", add, servicer)]
        async with serve(services, ServerOptions(grace_s=0.1)) as grpc_server:
            endpoint = f"127.0.0.1:{grpc_server.port}"
            async with open_channel(endpoint, ChannelOptions(max_attempts=1)) as channel:
                yield Rig(placement_pb2_grpc.PlacementServiceStub(channel), redis, endpoint, resolver)


@pytest.fixture
async def rig(valkey_node: EmbeddedValkey) -> AsyncIterator[Rig]:
    async with running(valkey_node) as it:
        yield it


def ids(response: pb.PickWorkersResponse) -> list[str]:
    return [candidate.worker.worker_id for candidate in response.candidates]


async def test_a_pick_prefers_the_worker_that_holds_the_adapter(rig: Rig) -> None:
    for number in range(6):
        await joined(rig.redis, f"w-{number}", *([resident(7)] if number == 3 else []))
    answer = await rig.call(rig.stub.PickWorkers(pb.PickWorkersRequest(adapters=["a7"])))
    assert (ids(answer)[0], answer.candidates[0].tier, len(answer.candidates)) == ("w-3", pb.TIER_SLOT, 3)
    assert list(answer.adapter_digests) == [digest(7)]
    assert answer.candidates[0].worker.endpoint == "w-3:50052"
    assert answer.revision > 0
    assert answer.ttl.ToMilliseconds() > 0


async def test_the_catalog_is_told_how_long_the_caller_of_a_pick_waits(rig: Rig) -> None:
    await joined(rig.redis, "w-0")
    await rig.call(rig.stub.PickWorkers(pb.PickWorkersRequest(adapters=["a7", "a8"]), timeout=40))
    assert [left_s is not None and 20 < left_s <= 40 for left_s in rig.resolver.waits_s] == [True, True]


async def test_a_pick_goes_by_the_policy_of_the_adapter(rig: Rig) -> None:
    for number in range(6):
        await joined(rig.redis, f"w-{number}", *([resident(77), resident(78)] if number == 3 else []))
    picks = [await rig.call(rig.stub.PickWorkers(pb.PickWorkersRequest(adapters=[name]))) for name in ("a77", "a78")]
    assert [len(pick.candidates) for pick in picks] == [1, 3]


async def test_picks_go_on_as_they_were_when_redis_was_flushed(rig: Rig) -> None:
    for number in range(3):
        await joined(rig.redis, f"w-{number}", *([resident(7)] if number == 1 else []))
    request = pb.PickWorkersRequest(adapters=["a7"], base_model="org/model")

    async def picked() -> tuple[list[str], int]:
        answer = await rig.call(rig.stub.PickWorkers(request))
        return sorted(ids(answer)), answer.candidates[0].tier

    assert await picked() == (["w-0", "w-1", "w-2"], pb.TIER_SLOT)
    await rig.redis.run(lambda client: client.flushall())
    assert await picked() == (["w-0", "w-1", "w-2"], pb.TIER_SLOT)
    first = await joined(rig.redis, "w-0", resident(8))
    await first.report(resident(9))

    async def is_read_again() -> bool:
        listed = (await rig.call(rig.stub.ListWorkers(pb.ListWorkersRequest()))).workers
        assert [worker.worker_id for worker in listed] == ["w-0", "w-1", "w-2"]
        return [worker.residency_revision for worker in listed] == [2, 1, 1]

    await until_async(is_read_again)
    assert await picked() == (["w-0", "w-1", "w-2"], pb.TIER_SLOT)
    await joined(rig.redis, "w-1", resident(8))

    async def is_believed() -> bool:
        return await picked() == (["w-0", "w-1", "w-2"], pb.TIER_NONE)

    await until_async(is_believed)


async def test_a_pool_that_redis_forgot_is_known_until_its_leases_end(redis: RedisConnection) -> None:
    now_s = 0.0
    fleets = FleetCache(Directory(redis), clock=lambda: now_s)
    short = Member(redis, worker(), lease_s=5.0)
    await short.announce()
    await short.touch_pool()
    assert await fleets.pools() == [POOL]
    assert len((await fleets.picture(POOL)).workers) == 1
    await redis.run(lambda client: client.flushall())
    now_s += REFRESH_S
    assert await fleets.pools() == [POOL]

    async def is_forgotten() -> bool:
        nonlocal now_s
        now_s += REFRESH_S
        return await fleets.pools() == []

    await until_async(is_forgotten)
    assert (await fleets.picture(POOL)).workers == ()


async def test_a_pick_names_workers_that_serve_alike_and_have_room_for_all_adapters(rig: Rig) -> None:
    for number, num_slots in enumerate((1, 4, 1, 4)):
        member = Member(rig.redis, replace(worker(f"w-{number}"), num_slots=num_slots))
        await member.announce()
        await member.touch_pool()
    singles, twice = set(), set()
    for number in range(16):
        pick = pb.PickWorkersRequest(adapters=[f"a{number}", "a99"], max_workers=4)
        assert set(ids(await rig.call(rig.stub.PickWorkers(pick)))) == {"w-1", "w-3"}
        pick = pb.PickWorkersRequest(adapters=[f"a{number}"], max_workers=4)
        singles.add(frozenset(ids(await rig.call(rig.stub.PickWorkers(pick)))))
        pick = pb.PickWorkersRequest(adapters=[f"a{number}", f"a0{number}"], max_workers=4)
        twice.add(frozenset(ids(await rig.call(rig.stub.PickWorkers(pick)))))
    assert singles == {frozenset({"w-0", "w-2"}), frozenset({"w-1", "w-3"})}
    assert twice == singles, "one version takes its slots once, however many names it goes by"


async def test_a_pick_for_the_base_model_goes_by_name_or_digest(rig: Rig) -> None:
    await joined(rig.redis, "w-1")
    for base_model in ("org/model", POOL):
        assert ids(await rig.call(rig.stub.PickWorkers(pb.PickWorkersRequest(base_model=base_model)))) == ["w-1"]


async def test_workers_that_drain_or_start_are_listed_but_not_picked(rig: Rig) -> None:
    await joined(rig.redis, "w-ready")
    for name, state in (("w-draining", WorkerState.DRAINING), ("w-starting", WorkerState.STARTING)):
        await Member(rig.redis, worker(name)).announce(state)
    assert ids(await rig.call(rig.stub.PickWorkers(pb.PickWorkersRequest(base_model=POOL)))) == ["w-ready"]
    listed = await rig.call(rig.stub.ListWorkers(pb.ListWorkersRequest()))
    assert {w.worker_id: w.state for w in listed.workers} == {
        "w-draining": pb.WORKER_STATE_DRAINING,
        "w-ready": pb.WORKER_STATE_READY,
        "w-starting": pb.WORKER_STATE_STARTING,
    }


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (pb.PickWorkersRequest(), InvalidRequestError),
        (pb.PickWorkersRequest(adapters=["not a reference"]), InvalidReferenceError),
        (pb.PickWorkersRequest(adapters=["a1"], max_workers=-1), InvalidRequestError),
        (pb.PickWorkersRequest(adapters=["a1"], max_workers=10_000), InvalidRequestError),
        (pb.PickWorkersRequest(adapters=["a1"] * 65), InvalidRequestError),
        (pb.PickWorkersRequest(base_model="sha256:zz"), InvalidRequestError),
        (pb.PickWorkersRequest(adapters=["unknown"]), AdapterNotFoundError),
        (pb.PickWorkersRequest(adapters=["a1", "x2"]), BaseModelMismatchError),
        (pb.PickWorkersRequest(adapters=["a1"], base_model=OTHER_POOL), BaseModelMismatchError),
        (pb.PickWorkersRequest(adapters=["x1"], base_model="org/model"), BaseModelMismatchError),
        (pb.PickWorkersRequest(adapters=["x1"]), NoWorkersError),
        (pb.PickWorkersRequest(base_model="org/unknown"), NoWorkersError),
        (pb.PickWorkersRequest(base_model=OTHER_POOL), NoWorkersError),
    ],
)
async def test_a_pick_that_cannot_be_answered_says_why(
    rig: Rig, request_: pb.PickWorkersRequest, error: type[Exception]
) -> None:
    await joined(rig.redis, "w-1")
    with pytest.raises(error) as failure:
        await rig.call(rig.stub.PickWorkers(request_))
    assert type(failure.value) is error


async def test_a_name_that_two_pools_share_must_be_a_digest(rig: Rig) -> None:
    await joined(rig.redis, "w-1")
    await joined(rig.redis, "w-2", pool=OTHER_POOL)
    with pytest.raises(InvalidRequestError, match="give one of the digests"):
        await rig.call(rig.stub.PickWorkers(pb.PickWorkersRequest(base_model="org/model")))
    assert ids(await rig.call(rig.stub.PickWorkers(pb.PickWorkersRequest(base_model=OTHER_POOL)))) == ["w-2"]


async def test_listing_workers_pages_through_all_pools(rig: Rig) -> None:
    expected = sorted(
        [(POOL, f"w-{n}") for n in range(5)] + [(OTHER_POOL, f"v-{n}") for n in range(4)],
    )
    for pool, name in expected:
        await Member(rig.redis, worker(name, pool=pool)).announce(load=ReportedLoad(1, 2, 3, 4, 5, 0.5))
        await Member(rig.redis, worker(name, pool=pool)).touch_pool()
    found: list[tuple[str, str]] = []
    token = ""
    while True:
        page = await rig.call(rig.stub.ListWorkers(pb.ListWorkersRequest(page_size=2, page_token=token)))
        assert len(page.workers) <= 2
        found += [(w.base_model_digest, w.worker_id) for w in page.workers]
        token = page.next_page_token
        if not token:
            break
    assert found == expected
    assert page.workers[0].load == pb.WorkerLoad(
        running_sequences=1, waiting_sequences=2, max_sequences=3, free_slots=4, num_slots=5, kv_usage=0.5
    )


async def test_listing_placements_pages_and_filters(rig: Rig) -> None:
    held = {"w-1": [1, 2, 3], "w-2": [], "w-3": [2, 3, 4, 5], "w-4": [2]}
    for name, numbers in held.items():
        await joined(rig.redis, name, *(resident(n, Tier.HOST, pinned=n == 3) for n in numbers))

    async def listed(**filters: Any) -> list[tuple[str, str]]:
        found, token = [], ""
        while True:
            request = pb.ListPlacementsRequest(page_size=3, page_token=token, **filters)
            page = await rig.call(rig.stub.ListPlacements(request))
            assert len(page.placements) <= 3
            assert all(p.pinned == (p.adapter == "acme/a3") and p.tier == pb.TIER_HOST for p in page.placements)
            found += [(p.worker_id, p.adapter_digest) for p in page.placements]
            token = page.next_page_token
            if not token:
                return found

    everything = sorted((name, digest(n)) for name, numbers in held.items() for n in numbers)
    assert await listed() == everything
    assert await listed(worker_id="w-3") == [e for e in everything if e[0] == "w-3"]
    assert await listed(adapter_digest=digest(2)) == [e for e in everything if e[1] == digest(2)]
    assert await listed(adapter_digest=digest(2), worker_id="w-4") == [("w-4", digest(2))]
    assert await listed(worker_id="w-unknown") == []


async def test_a_tenant_is_shown_its_own_placements_only(rig: Rig) -> None:
    await joined(rig.redis, "w-1", resident(1), resident(2, tenant=TenantId("globex")))
    mine = await rig.call(rig.stub.ListPlacements(pb.ListPlacementsRequest()))
    assert [p.adapter_digest for p in mine.placements] == [digest(1)]
    metadata = [("hotslot-tenant", "globex")]
    theirs = await rig.call(rig.stub.ListPlacements(pb.ListPlacementsRequest(), metadata=metadata))
    assert [p.adapter_digest for p in theirs.placements] == [digest(2)]


async def test_content_that_two_tenants_use_is_shown_to_each_under_its_own_name(rig: Rig) -> None:
    globex = TenantId("globex")
    mine = Resident(digest(1), Tier.HOST, name="mine")
    own = Resident(digest(2), Tier.HOST, name="own", tenant=globex)
    member = await joined(rig.redis, "w-1", mine, own)
    calls = {tenant: [("hotslot-tenant", tenant)] for tenant in ("default", globex)}
    watches = {t: rig.stub.WatchPlacements(pb.WatchPlacementsRequest(), metadata=m) for t, m in calls.items()}
    for tenant, name in (("default", "mine"), (globex, "own")):
        assert [m.placement.adapter for m in await take(watches[tenant], 1)] == [name]
    # Another tenant's first and last use are nothing that the first one hears of; a new tier is.
    await member.report(replace(mine, others=((globex, "theirs"),)), own)
    assert [(m.placement.adapter, m.removed) for m in await take(watches[globex], 1)] == [("theirs", False)]
    for tenant, name in (("default", "mine"), (globex, "theirs")):
        request = pb.ListPlacementsRequest(adapter_digest=digest(1))
        listed = await rig.call(rig.stub.ListPlacements(request, metadata=calls[tenant]))
        assert [p.adapter for p in listed.placements] == [name]
    await member.report(replace(mine, tier=Tier.SLOT), own)
    assert [(m.placement.adapter, m.removed) for m in await take(watches[globex], 1)] == [("theirs", True)]
    (change,) = await take(watches["default"], 1)
    assert (change.placement.adapter, change.placement.tier, change.removed) == ("mine", pb.TIER_SLOT, False)
    for watch in watches.values():
        watch.cancel()


@pytest.mark.parametrize("token", ["x", "AAAA", "bnVsbA==", "WzEsMl0="])
async def test_a_foreign_page_token_is_refused(rig: Rig, token: str) -> None:
    with pytest.raises(InvalidPageTokenError):
        await rig.call(rig.stub.ListWorkers(pb.ListWorkersRequest(page_token=token)))
    with pytest.raises(InvalidPageTokenError):
        await rig.call(rig.stub.ListPlacements(pb.ListPlacementsRequest(page_token=token)))


async def test_a_token_of_another_listing_is_refused(rig: Rig) -> None:
    for number in range(3):
        await joined(rig.redis, f"w-{number}")
    token = (await rig.call(rig.stub.ListWorkers(pb.ListWorkersRequest(page_size=1)))).next_page_token
    with pytest.raises(InvalidPageTokenError):
        await rig.call(rig.stub.ListWorkers(pb.ListWorkersRequest(page_token=token, base_model="org/model")))


Seen = tuple[str, str, bool]


async def take(call: Any, count: int) -> list[pb.WatchPlacementsResponse]:
    async with asyncio.timeout(60):
        return [await call.read() for _ in range(count)]


def seen(messages: list[pb.WatchPlacementsResponse]) -> set[Seen]:
    return {(m.placement.worker_id, m.placement.adapter_digest, m.removed) for m in messages}


async def test_a_watch_sends_the_state_then_changes(rig: Rig) -> None:
    member = await joined(rig.redis, "w-1", resident(1), resident(2), resident(3, tenant=TenantId("globex")))
    call = rig.stub.WatchPlacements(pb.WatchPlacementsRequest())
    state = await take(call, 2)
    assert seen(state) == {("w-1", digest(1), False), ("w-1", digest(2), False)}
    # A stream that breaks in the middle of the state begins again.
    assert state[0].revision == 0 < state[1].revision
    await member.report(resident(2), resident(4, Tier.HOST), resident(5, tenant=TenantId("globex")))
    changes = await take(call, 2)
    assert seen(changes) == {("w-1", digest(1), True), ("w-1", digest(4), False)}
    # Only the last of what happened together moves the revision on, so that resuming loses nothing.
    assert changes[0].revision == state[1].revision < changes[1].revision
    await joined(rig.redis, "v-1", resident(9), pool=OTHER_POOL)
    assert seen(await take(call, 1)) == {("v-1", digest(9), False)}
    call.cancel()


async def test_a_watch_resumes_where_it_was(rig: Rig) -> None:
    member = await joined(rig.redis, "w-1", resident(1))
    call = rig.stub.WatchPlacements(pb.WatchPlacementsRequest(base_model=POOL))
    (mark,) = await take(call, 1)
    call.cancel()
    await member.report(resident(1), resident(2))
    await member.release()
    resumed = rig.stub.WatchPlacements(pb.WatchPlacementsRequest(base_model=POOL, from_revision=mark.revision))
    messages = await take(resumed, 3)
    assert seen(messages[:1]) == {("w-1", digest(2), False)}
    assert seen(messages[1:]) == {("w-1", digest(1), True), ("w-1", digest(2), True)}
    resumed.cancel()


async def test_a_watch_whose_history_was_lost_says_so(rig: Rig) -> None:
    await joined(rig.redis, "w-1", resident(1))
    call = rig.stub.WatchPlacements(pb.WatchPlacementsRequest(base_model=POOL))
    (mark,) = await take(call, 1)
    await rig.redis.run(lambda client: client.flushall())
    with pytest.raises(RevisionCompactedError):
        await rig.call(asyncio.wait_for(call.read(), 60))
    late = rig.stub.WatchPlacements(pb.WatchPlacementsRequest(base_model=POOL, from_revision=mark.revision))
    with pytest.raises(RevisionCompactedError):
        await rig.call(asyncio.wait_for(late.read(), 60))
    with pytest.raises(InvalidRequestError):
        await rig.call(rig.stub.WatchPlacements(pb.WatchPlacementsRequest(from_revision=-1)).read())


async def test_without_redis_every_call_says_so_and_works_again_afterwards() -> None:
    with embedded_valkey() as server:
        async with running(server, command_timeout_s=1.0) as rig:
            await joined(rig.redis, "w-1", resident(1))
            os.kill(server.pid, signal.SIGSTOP)
            for answer in (
                rig.stub.PickWorkers(pb.PickWorkersRequest(base_model=POOL)),
                rig.stub.ListWorkers(pb.ListWorkersRequest()),
                rig.stub.ListPlacements(pb.ListPlacementsRequest()),
                rig.stub.WatchPlacements(pb.WatchPlacementsRequest()).read(),
            ):
                with pytest.raises(CoordinationUnavailableError):
                    await rig.call(answer)
            os.kill(server.pid, signal.SIGCONT)
            answer = await rig.call(rig.stub.PickWorkers(pb.PickWorkersRequest(base_model=POOL)))
            assert ids(answer) == ["w-1"]
