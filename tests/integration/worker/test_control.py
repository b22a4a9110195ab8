"""AdapterControlService over real sockets: load, swap, pin, unload, defaults, on and off, drain, status."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from hotslot.errors import (
    AdapterNotFoundError,
    AdapterNotLoadedError,
    AdapterPinnedError,
    HotslotError,
    RequestDeadlineError,
    SlotsFullError,
    StoreUnavailableError,
)
from hotslot.ids import TenantId
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as pb
from hotslot.rpc.status import from_rpc_error
from tests.support.echo_model import UNHURRIED_STEP_S, EchoModel, voice
from tests.support.echo_worker import Calls, RunningWorker, make_request, run_worker
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until, until_async
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.pinned_arena import PIECE_BYTES, PinnedArena

OTHER_TENANT = TenantId("other")


async def error_of(call: object) -> HotslotError:
    with pytest.raises(grpc.RpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


def default(reference: str, weight: float | None = None) -> pb.DefaultAdapter:
    return pb.DefaultAdapter(reference=reference, weight=weight)


async def unload(calls: Calls, reference: str, timeout_s: float = 5.0) -> pb.UnloadAdapterResponse:
    response: pb.UnloadAdapterResponse = await calls.control.UnloadAdapter(
        pb.UnloadAdapterRequest(reference=reference), timeout=timeout_s
    )
    return response


async def test_loading_brings_a_version_into_slots_with_its_timings(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    digest = store.add("bot", model.spec.digest, rank=12)
    response = await calls.load("bot")
    adapter = response.adapter
    assert (adapter.digest, adapter.tier, adapter.max_rank) == (digest, pb.ADAPTER_TIER_SLOT, 12)
    assert len(adapter.slots) == 2
    assert list(adapter.references) == ["bot:latest"]
    assert (adapter.users, adapter.pinned, adapter.host_size_bytes) == (0, False, 5_000)
    assert response.previous_digest == ""
    timings = response.timings
    assert timings.fetch.ToMicroseconds() > 0
    assert timings.total.ToMicroseconds() >= timings.resolve.ToMicroseconds() + timings.fetch.ToMicroseconds()
    again = await calls.load("bot")
    assert (again.previous_digest, again.timings.fetch.ToMicroseconds()) == (digest, 0)
    assert list(again.adapter.slots) == list(adapter.slots)


async def test_host_only_leaves_the_slots_alone(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    store.add("bot", model.spec.digest)
    response = await calls.load("bot", host_only=True)
    assert response.adapter.tier == pb.ADAPTER_TIER_HOST
    assert (await calls.status()).slots.free == 4


async def test_load_moves_a_reference_at_once_and_running_sequences_finish_on_their_version(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    model.runner.step_s = UNHURRIED_STEP_S
    first = store.add("bot", model.spec.digest, seed=1)
    running = asyncio.create_task(calls.generate("bot", text="endless"))
    await until_async(lambda: has_users(calls))
    second = store.add("bot", model.spec.digest, seed=2)
    response = await calls.load("bot")
    assert (response.previous_digest, response.adapter.digest) == (first, second)
    assert (await calls.generate("bot")).text == voice(second)
    assert not running.done()
    model.runner.step_s = 0.0
    old = await running
    assert old.started.adapters[0].digest == first
    assert set(old.text.replace(voice(first), "")) <= set(voice(first))
    assert voice(second) not in old.text


async def has_users(calls: Calls) -> bool:
    return any(adapter.users for adapter in await calls.list())


async def test_a_moved_tag_is_followed_by_itself_without_a_failed_request(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    served: list[str] = []
    versions = [store.add("bot", model.spec.digest, seed=seed) for seed in range(4)]
    store.move_tag("bot", "latest", versions[0])
    for digest in versions:
        store.move_tag("bot", "latest", digest)

        async def is_served(digest: str = digest) -> bool:
            answer = await calls.generate("bot")
            assert answer.text == voice(answer.started.adapters[0].digest)
            served.append(answer.started.adapters[0].digest)
            return served[-1] == digest

        await until_async(is_served)
    in_order = [digest for index, digest in enumerate(served) if index == 0 or served[index - 1] != digest]
    assert in_order == versions, "a name never goes back"


async def test_an_explicit_digest_stays_what_it_is(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    first = store.add("bot", model.spec.digest, seed=1)
    store.add("bot", model.spec.digest, seed=2)
    assert (await calls.generate(f"bot@{first}")).text == voice(first)


async def test_a_new_version_that_cannot_be_loaded_keeps_the_old_one(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    first = store.add("bot", model.spec.digest, seed=1)
    await calls.generate("bot")
    broken = store.add("bot", model.spec.digest, seed=2)
    model.decoder.refuse.add(broken)
    assert type(await error_of(calls.load("bot"))).__name__ == "InvalidAdapterError"
    for _ in range(3):
        await asyncio.sleep(0.06)
        assert (await calls.generate("bot")).text == voice(first)


async def test_the_store_away_leaves_residents_serving_and_refuses_the_rest(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    digest = store.add("bot", model.spec.digest)
    store.add("cold", model.spec.digest)
    await calls.generate("bot")
    store.catalog.resolve_error = StoreUnavailableError("away")
    for _ in range(3):
        await asyncio.sleep(0.06)
        assert (await calls.generate("bot")).text == voice(digest)
    assert isinstance(await error_of(calls.generate("cold")), StoreUnavailableError)
    store.catalog.resolve_error = None
    await calls.generate("cold")


async def test_a_deleted_adapter_stops_being_served(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    store.add("bot", model.spec.digest)
    await calls.generate("bot")
    store.remove("bot")
    await asyncio.sleep(0.06)
    assert isinstance(await error_of(calls.generate("bot")), AdapterNotFoundError)


async def test_what_is_in_slots_beyond_their_number_makes_room(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    for index in range(6):
        store.add(f"a{index}", model.spec.digest)
        await calls.load(f"a{index}")
    tiers = {adapter.references[0]: adapter.tier for adapter in await calls.list()}
    assert [tiers[f"a{index}:latest"] for index in range(6)] == [pb.ADAPTER_TIER_HOST] * 2 + [pb.ADAPTER_TIER_SLOT] * 4


async def test_pinned_adapters_keep_their_slots_until_unpinned(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    for index in range(5):
        store.add(f"a{index}", model.spec.digest)
    for index in range(4):
        response = await calls.control.PinAdapter(pb.PinAdapterRequest(reference=f"a{index}"), timeout=60)
        assert response.adapter.pinned
    assert (await calls.status()).slots.pinned == 4
    assert isinstance(await error_of(calls.load("a4")), SlotsFullError)
    assert isinstance(await error_of(calls.generate("a4")), SlotsFullError)
    assert isinstance(await error_of(unload(calls, "a0")), AdapterPinnedError)
    response = await calls.control.UnpinAdapter(pb.UnpinAdapterRequest(reference="a0"), timeout=60)
    assert not response.adapter.pinned
    await calls.load("a4")
    assert (await calls.status()).slots.pinned == 3


async def test_a_pin_moves_with_its_reference(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    store.add("bot", model.spec.digest, seed=1)
    await calls.control.PinAdapter(pb.PinAdapterRequest(reference="bot"), timeout=60)
    second = store.add("bot", model.spec.digest, seed=2)
    await calls.load("bot")
    assert {adapter.digest for adapter in await calls.list() if adapter.pinned} == {second}
    assert (await calls.status()).slots.pinned == 1


async def test_a_pin_moves_with_a_tag_that_is_followed(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    store.add("bot", model.spec.digest, seed=1)
    await calls.control.PinAdapter(pb.PinAdapterRequest(reference="bot"), timeout=60)
    second = store.add("bot", model.spec.digest, seed=2)

    async def has_moved() -> bool:
        return (await calls.generate("bot")).started.adapters[0].digest == second

    await until_async(has_moved)
    assert {adapter.digest for adapter in await calls.list() if adapter.pinned} == {second}
    assert (await calls.status()).slots.pinned == 1


async def test_unload_removes_an_adapter_from_every_tier(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    digest = store.add("bot", model.spec.digest)
    await calls.load("bot")
    assert (await unload(calls, "bot")).digest == digest
    assert await calls.list() == []
    assert (await calls.status()).slots.free == 4
    assert isinstance(await error_of(unload(calls, "bot")), AdapterNotLoadedError)
    await calls.generate("bot")
    assert store.blobs.read_offsets == [0, 0]


async def test_unload_waits_for_users_and_gives_up_at_its_deadline(
    calls: Calls, running: RunningWorker, store: MemoryStore, model: EchoModel
) -> None:
    model.runner.step_s = UNHURRIED_STEP_S
    store.add("bot", model.spec.digest)
    stream = calls.inference.Generate(make_request("bot", text="endless"), timeout=60)
    await stream.read()
    assert isinstance(await error_of(unload(calls, "bot", 0.3)), RequestDeadlineError)
    (adapter,) = await calls.list()
    assert (adapter.tier, adapter.users) == (pb.ADAPTER_TIER_SLOT, 1)
    unloading = asyncio.create_task(unload(calls, "bot"))
    await asyncio.sleep(0.05)
    assert not unloading.done()
    stream.cancel()
    await unloading
    assert await calls.list() == []
    running.assert_nothing_is_held()


async def test_a_pin_that_comes_while_an_unload_waits_is_kept_and_the_unload_refused(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    model.runner.step_s = UNHURRIED_STEP_S
    store.add("bot", model.spec.digest)
    stream = calls.inference.Generate(make_request("bot", text="endless"), timeout=60)
    await stream.read()
    unloading = asyncio.create_task(error_of(unload(calls, "bot")))
    await asyncio.sleep(0.05)
    response = await calls.control.PinAdapter(pb.PinAdapterRequest(reference="bot"), timeout=60)
    error = await unloading
    assert isinstance(error, AdapterPinnedError)
    assert error.subject == "bot:latest"
    stream.cancel()
    await until_async(lambda: has_no_users(calls))
    (adapter,) = await calls.list()
    assert (adapter.pinned, list(adapter.slots)) == (True, list(response.adapter.slots))
    assert (await calls.status()).slots.pinned == 1


async def has_no_users(calls: Calls) -> bool:
    return not await has_users(calls)


async def test_unload_by_one_tenant_leaves_anothers_same_version_alone(
    calls: Calls, running: RunningWorker, store: MemoryStore, model: EchoModel
) -> None:
    digest = store.add("bot", model.spec.digest)
    assert store.add("bot", model.spec.digest, tenant=OTHER_TENANT) == digest
    other = await running.calls(OTHER_TENANT)
    await calls.load("bot")
    await other.load("bot")
    await unload(calls, "bot")
    assert await calls.list() == []
    assert [adapter.digest for adapter in await other.list()] == [digest]


async def test_defaults_serve_those_who_name_none(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    digest = store.add("bot", model.spec.digest)
    request = pb.SetDefaultAdaptersRequest(adapters=[default("bot", 0.5)])
    await calls.control.SetDefaultAdapters(request, timeout=60)
    assert (await calls.generate()).text == voice(digest, 0.5)
    assert (await calls.generate(base_only=True)).text == "base"
    await calls.control.SetDefaultAdapters(pb.SetDefaultAdaptersRequest(), timeout=60)
    assert (await calls.generate()).text == "base"


async def test_defaults_that_do_not_exist_change_nothing(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    digest = store.add("bot", model.spec.digest)
    await calls.control.SetDefaultAdapters(pb.SetDefaultAdaptersRequest(adapters=[default("bot")]), timeout=60)
    request = pb.SetDefaultAdaptersRequest(adapters=[default("missing")])
    assert isinstance(await error_of(calls.control.SetDefaultAdapters(request, timeout=60)), AdapterNotFoundError)
    assert (await calls.generate()).text == voice(digest)


async def test_disabled_adapters_win_until_they_are_enabled_again(
    calls: Calls, running: RunningWorker, store: MemoryStore, model: EchoModel
) -> None:
    digest = store.add("bot", model.spec.digest)
    store.add("bot", model.spec.digest, tenant=OTHER_TENANT)
    await calls.control.DisableAdapters(pb.DisableAdaptersRequest(), timeout=60)
    answer = await calls.generate("bot")
    assert (answer.text, list(answer.started.adapters)) == ("base", [])
    other = await running.calls(OTHER_TENANT)
    assert (await other.generate("bot")).text == voice(digest), "another tenant's switch is its own"
    await calls.control.EnableAdapters(pb.EnableAdaptersRequest(), timeout=60)
    assert (await calls.generate("bot")).text == voice(digest)


async def test_a_loading_adapter_is_shown_as_loading(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    store.add("bot", model.spec.digest)
    store.blobs.reading.clear()
    loading = asyncio.create_task(calls.generate("bot"))
    await until(lambda: store.blobs.active_reads == 1)
    (adapter,) = await calls.list()
    assert adapter.tier == pb.ADAPTER_TIER_LOADING
    assert (await calls.status()).queue.loading_requests == 1
    store.blobs.reading.set()
    await loading


async def test_the_status_counts_what_the_engine_did(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    store.add("bot", model.spec.digest)
    answer = await calls.generate("bot")
    status = await calls.status()
    assert status.state == pb.WORKER_STATE_READY
    assert status.generated_tokens == answer.finished[0].usage.completion_tokens
    assert (status.activations, status.recompiles) == (1, 0)
    assert (status.slots.num_slots, status.slots.free, status.slots.in_use) == (4, 3, 0)
    assert status.kv.free_blocks == status.kv.num_blocks
    assert status.arena == pb.ArenaStatus(), "a device that reads the host's own memory has none"


async def test_the_status_tells_how_much_of_the_devices_arena_adapters_take(
    model: EchoModel, store_endpoint: str, references: ReferenceLimits
) -> None:
    arena = PinnedArena(8 * PIECE_BYTES, lambda address, size: None)
    async with run_worker(replace(model, arena=arena), store_endpoint, references=references) as running:
        calls = await running.calls()
        taken = arena.take(PIECE_BYTES + 1)
        found = (await calls.status()).arena
        assert (found.size_bytes, found.used_bytes) == (8 * PIECE_BYTES, 2 * PIECE_BYTES)
        del taken
        assert (await calls.status()).arena.used_bytes == 0


async def test_a_drain_that_does_not_end_in_time_says_so_and_stays_draining(
    calls: Calls, running: RunningWorker, model: EchoModel
) -> None:
    model.runner.step_s = UNHURRIED_STEP_S
    stream = calls.inference.Generate(make_request(text="endless"), timeout=60)
    await stream.read()
    error = await error_of(calls.control.DrainWorker(pb.DrainWorkerRequest(), timeout=0.3))
    assert isinstance(error, RequestDeadlineError)
    assert (await calls.status()).state == pb.WORKER_STATE_DRAINING
    stream.cancel()
    await calls.control.DrainWorker(pb.DrainWorkerRequest(), timeout=60)
    assert running.worker.in_flight == 0
