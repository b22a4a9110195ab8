"""A request reaches its adapter from any worker, in one hop, with everything that belongs to it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from hotslot.contract.placement import Tier
from hotslot.errors import QueueFullError, RequestDeadlineError, UnavailableError
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.rpc.status import from_rpc_error
from shared.coordination.directory import Directory
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.support.echo_model import UNHURRIED_STEP_S, echo_model, voice
from tests.support.echo_worker import make_request
from tests.support.fleet import Member, fleet_of, joined, until_known
from tests.support.waiting import until, until_async

ENDLESS: dict[str, Any] = {"text": "endless", "stop": pb.StopConditions(max_tokens=400)}


async def hold(
    directory: Directory,
    member: Member,
    store: Catalog,
    name: str,
    *pool: Member,
    tenant: TenantId = DEFAULT_TENANT,
) -> None:
    """Let one worker have an adapter, and wait until the others have heard of it."""
    marked = await member.calls(tenant, marked=True)
    await marked.generate(name)
    digest = Digest(store.digests[name])

    async def is_known() -> bool:
        found = (await directory.placements(SPEC.digest, [digest]))[digest]
        return any(p.worker_id == member.worker_id and p.resident.tier is Tier.SLOT for p in found)

    await until_async(is_known)

    async def is_seen() -> bool:
        sights = [await other.router.view.look([digest]) for other in pool]
        return all(sight is not None and sight.placements[digest] for sight in sights)

    await until_async(is_seen)


async def read_on(call: Any) -> None:
    """Read what is left of a stream that was read from already."""
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_request_is_served_by_the_worker_that_holds_its_adapter(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    await hold(directory, holder, store, "one", front)
    answer = await (await front.calls()).generate("one", request_id="r-mine")
    assert answer.started.worker_id == holder.worker_id
    assert answer.started.request_id == "r-mine"
    assert answer.started.adapters[0].digest == store.digests["one"]
    assert answer.text == voice(store.digests["one"])
    assert not front.model.decoder.decoded, "nothing was loaded where it was not needed"


async def test_who_holds_the_adapter_serves_without_a_hop(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    for holder in pair:
        await hold(directory, holder, store, "one")
        assert (await (await holder.calls()).generate("one")).started.worker_id == holder.worker_id


async def test_a_marked_request_stays_where_it_is(pair: list[Member], store: Catalog, directory: Directory) -> None:
    front, holder = pair
    await hold(directory, holder, store, "one", front)
    marked = await front.calls(marked=True)
    assert (await marked.generate("one")).started.worker_id == front.worker_id


async def test_workers_that_believe_each_other_to_be_better_make_one_hop(
    pair: list[Member], store: Catalog, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def the_other(self: Any, tenant: Any, digests: Any, here: Any, policy: Any) -> Any:
        sight = await self.view.look(digests)
        return [record for worker_id, record in sight.fleet.workers.items() if worker_id != here.worker_id]

    monkeypatch.setattr("worker_service.routing.router.Router.before", the_other)
    for front, other in (pair, reversed(pair)):
        assert (await (await front.calls()).generate("one")).started.worker_id == other.worker_id


async def test_another_tenants_request_is_forwarded_as_that_tenants(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    tenant = TenantId("acme")
    other = Catalog(store.client.of(tenant), {})
    digest = await other.push("private", 7)
    await hold(directory, holder, other, "private", front, tenant=tenant)
    answer = await (await front.calls(tenant)).generate("private")
    assert (answer.started.worker_id, answer.text) == (holder.worker_id, voice(digest))
    with pytest.raises(grpc.RpcError) as caught:
        await (await front.calls()).generate("private")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_leaves_frees_the_row_on_the_other_worker(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    holder.model.runner.step_s = UNHURRIED_STEP_S
    await hold(directory, holder, store, "one", front)
    call = (await front.calls()).inference.Generate(make_request("one", **ENDLESS), timeout=60)
    await call.read()
    assert holder.in_flight == 1
    call.cancel()
    await until(lambda: holder.in_flight == 0 and holder.worker.parts.engine.open_sequences == 0)


async def test_the_deadline_travels_and_is_reported_by_the_one_who_is_called(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    await hold(directory, holder, store, "one", front)
    holder.model.runner.step_s = UNHURRIED_STEP_S
    with pytest.raises(grpc.RpcError) as caught:
        async for _ in (await front.calls()).inference.Generate(make_request("one", **ENDLESS), timeout=0.5):
            pass
    assert isinstance(from_rpc_error(caught.value), RequestDeadlineError)
    await until(lambda: holder.in_flight == 0)


async def test_headers_are_held_back_until_the_other_workers_first_token(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    await hold(directory, holder, store, "one", front)
    holder.model.runner.gate.clear()
    call = (await front.calls()).inference.Generate(make_request("one"), timeout=60)
    headers = asyncio.create_task(call.initial_metadata())
    await until(lambda: holder.in_flight == 1)
    assert not headers.done()
    holder.model.runner.gate.set()
    await headers
    assert (await call.read()).WhichOneof("event") == "started"


async def test_a_worker_lost_before_the_first_token_is_replaced_by_the_one_who_was_called(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    await hold(directory, holder, store, "one", front)
    holder.model.runner.gate.clear()
    answer = asyncio.create_task((await front.calls()).generate("one"))
    await until(lambda: holder.in_flight == 1)
    await holder.server.stop()
    assert (await answer).started.worker_id == front.worker_id


async def test_a_worker_lost_after_the_first_token_is_an_error_and_nothing_is_tried_again(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    await hold(directory, holder, store, "one", front)
    holder.model.runner.step_s = UNHURRIED_STEP_S
    call = (await front.calls()).inference.Generate(make_request("one", **ENDLESS), timeout=60)
    assert (await call.read()).started.worker_id == holder.worker_id
    stopping = asyncio.create_task(holder.server.stop())
    with pytest.raises(grpc.RpcError) as caught:
        await read_on(call)
    await stopping
    assert isinstance(from_rpc_error(caught.value), UnavailableError)
    assert front.worker.parts.engine.open_sequences == 0


async def test_a_draining_worker_forwards_what_it_would_refuse(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, other = pair
    calls = await front.calls()
    await calls.control.DrainWorker(control_pb.DrainWorkerRequest(), timeout=60)
    for adapters in ((), ("one",)):
        assert (await calls.generate(*adapters)).started.worker_id == other.worker_id
    marked = await front.calls(marked=True)
    with pytest.raises(grpc.RpcError, match="draining"):
        await marked.generate("one")


async def test_the_called_workers_defaults_and_switches_hold_wherever_it_is_served(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, other = pair
    await hold(directory, other, store, "two", front)
    calls, others = await front.calls(), await other.calls()
    defaults = [control_pb.DefaultAdapter(reference="one")]
    await calls.control.SetDefaultAdapters(control_pb.SetDefaultAdaptersRequest(adapters=defaults), timeout=60)
    await others.control.DisableAdapters(control_pb.DisableAdaptersRequest(), timeout=60)
    assert (await calls.generate()).text == voice(store.digests["one"])
    assert (await calls.generate("two")).text == voice(store.digests["two"]), "the other one refuses; served here"
    assert (await others.generate("two")).text == "base"


async def test_a_tenants_switch_keeps_nobody_elses_requests_away(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    tenant = TenantId("acme")
    other = Catalog(store.client.of(tenant), {})
    await other.push("private", 7)
    await hold(directory, holder, other, "private", front, tenant=tenant)
    await hold(directory, holder, store, "one", front)
    others = await holder.calls(tenant)
    await others.control.DisableAdapters(control_pb.DisableAdaptersRequest(), timeout=60)
    assert (await (await front.calls(tenant)).generate("private")).started.worker_id == front.worker_id
    assert (await (await front.calls()).generate("one")).started.worker_id == holder.worker_id


async def test_workers_of_another_kind_are_never_sent_anything(store: Catalog, redis_url: str) -> None:
    async with (
        fleet_of(1, store.endpoint, redis_url) as (front,),
        joined(store.endpoint, redis_url, echo_model(num_slots=3)) as stranger,
    ):
        marked = await stranger.calls(marked=True)
        await marked.generate("one")
        digest = Digest(store.digests["one"])

        async def is_listed() -> bool:
            sight = await front.router.view.look([digest])
            return sight is not None and bool(sight.placements[digest])

        await until_async(is_listed)
        assert (await (await front.calls()).generate("one")).started.worker_id == front.worker_id


@pytest.fixture
async def saturated(store: Catalog, redis_url: str) -> AsyncIterator[list[Member]]:
    """Two workers with one row and one place in the queue each, slow enough to fill."""
    async with (
        joined(store.endpoint, redis_url, echo_model(max_running=1, max_waiting=1)) as first,
        joined(store.endpoint, redis_url, echo_model(max_running=1, max_waiting=1)) as second,
    ):
        await until_known([first, second])
        yield [first, second]


async def test_who_has_no_room_forwards_and_refuses_only_when_nobody_has(saturated: list[Member]) -> None:
    first, second = saturated
    for member in saturated:
        member.model.runner.step_s = UNHURRIED_STEP_S
    calls = await first.calls()
    streams = []
    for count in range(1, 5):
        streams.append(calls.inference.Generate(make_request(**ENDLESS), timeout=120))
        await until(lambda count=count: sum(m.worker.parts.engine.open_sequences for m in saturated) == count)  # type: ignore[misc]
    await until(lambda: first.in_flight == second.in_flight == 2)
    with pytest.raises(grpc.RpcError) as caught:
        await calls.generate()
    error = from_rpc_error(caught.value)
    assert isinstance(error, QueueFullError)
    assert error.retry_after_s, "it says when to come again"
    for stream in streams:
        stream.cancel()
    await until(lambda: first.in_flight == second.in_flight == 0)
