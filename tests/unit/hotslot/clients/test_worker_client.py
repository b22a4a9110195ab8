"""The clients of workers against fake workers on real sockets: streams, deadlines, cancellation, failing over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest

from hotslot import (
    AdapterSelection,
    ChatMessage,
    Chunk,
    Finished,
    GenerationRequest,
    HotslotClient,
    Logprobs,
    Sampling,
    Started,
    Stop,
    WorkerClient,
)
from hotslot.contract.generation import GenerationEvent
from hotslot.errors import (
    AdapterNotFoundError,
    AdapterNotLoadedError,
    CoordinationUnavailableError,
    DrainingError,
    HotslotError,
    InternalError,
    NoWorkersError,
    QueueFullError,
    QuotaExceededError,
    RequestDeadlineError,
    StoreUnavailableError,
    UnavailableError,
)
from tests.support.fake_worker import FakeWorker
from tests.support.memory_store import MemoryStore
from tests.unit.hotslot.conftest import BASE, NO_CHANNEL_RETRIES, serving

PIRATE = (AdapterSelection("pirate"),)


@pytest.fixture
async def worker(worker_endpoint: str) -> AsyncIterator[WorkerClient]:
    async with WorkerClient(worker_endpoint, NO_CHANNEL_RETRIES) as client:
        yield client


async def test_a_generation_streams_typed_events(worker: WorkerClient) -> None:
    events = [event async for event in worker.generate(GenerationRequest("Hi", PIRATE))]
    assert [type(event) for event in events] == [Started, Chunk, Chunk, Chunk, Finished]
    completion = await worker.complete(GenerationRequest("Hi", PIRATE))
    assert completion.text == "Hello, sailor"
    assert completion.started.adapters[0].reference == "pirate"
    assert completion.choices[0].finished.timings.time_to_first_token_s == 0.012
    assert completion.choices[0].finished.stop_token_id == 0


async def test_every_option_reaches_the_worker(worker: WorkerClient, fake_worker: FakeWorker) -> None:
    request = GenerationRequest(
        prompt=(ChatMessage("user", "Hi"),),
        adapters=(AdapterSelection("a", 0.5), AdapterSelection("b", 0.0)),
        sampling=Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=0, repetition_penalty=1.1,
                          presence_penalty=0.2, frequency_penalty=0.3, logit_bias={7: -1.0}),
        stop=Stop(max_tokens=9, min_tokens=2, strings=("\n",), token_ids=(1,), ignore_eos=True),
        logprobs=Logprobs(num_alternatives=3, prompt=True),
        request_id="mine", priority=2, num_choices=2,
    )  # fmt: skip
    completion = await worker.complete(request)
    (sent,) = fake_worker.inference.requests
    assert sent.chat.messages[0].content == "Hi"
    assert [(a.reference, a.weight) for a in sent.adapters] == [("a", 0.5), ("b", 0.0)]
    assert sent.adapters[1].HasField("weight"), "0 is a weight, not an absent one"
    assert sent.sampling.HasField("seed")
    assert (sent.sampling.top_k, dict(sent.sampling.logit_bias)) == (5, {7: -1.0})
    assert (sent.stop.max_tokens, sent.stop.min_tokens, sent.stop.ignore_eos) == (9, 2, True)
    assert (list(sent.stop.stop_strings), list(sent.stop.stop_token_ids)) == (["\n"], [1])
    assert (sent.logprobs.enabled, sent.logprobs.num_alternatives, sent.logprobs.prompt) == (True, 3, True)
    assert (sent.request_id, sent.priority, sent.num_choices) == ("mine", 2, 2)
    assert [choice.text for choice in completion.choices] == ["Hello, sailor"] * 2


async def test_token_ids_and_plain_text_are_prompts_too(worker: WorkerClient, fake_worker: FakeWorker) -> None:
    await worker.complete(GenerationRequest((1, 2, 3)))
    await worker.complete("plain")
    assert list(fake_worker.inference.requests[0].tokens.token_ids) == [1, 2, 3]
    assert fake_worker.inference.requests[1].text == "plain"


async def test_closing_the_iterator_cancels_the_request(worker: WorkerClient, fake_worker: FakeWorker) -> None:
    fake_worker.inference.hang_after_pieces = 2
    async with aclosing(worker.generate("Hi")) as events:
        async for event in events:
            if isinstance(event, Chunk):
                break
    async with asyncio.timeout(60):
        await fake_worker.inference.cancelled.wait()


async def test_cancelling_the_caller_cancels_the_request(worker: WorkerClient, fake_worker: FakeWorker) -> None:
    fake_worker.inference.hang_after_pieces = 1
    task = asyncio.create_task(worker.complete("Hi"))
    async with asyncio.timeout(60):
        await fake_worker.inference.hanging.wait()
        task.cancel()
        await fake_worker.inference.cancelled.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_deadline_ends_a_generation_that_hangs(worker: WorkerClient, fake_worker: FakeWorker) -> None:
    fake_worker.inference.hang_after_pieces = 1
    with pytest.raises(RequestDeadlineError):
        await worker.complete("Hi", timeout_s=0.3)


async def test_a_stream_that_ends_too_early_is_an_error(worker: WorkerClient, fake_worker: FakeWorker) -> None:
    fake_worker.inference.fail_after_pieces = (1, DrainingError("w-1"))
    with pytest.raises(DrainingError):
        await worker.complete("Hi")


async def test_control_calls_answer_in_the_clients_own_types(worker: WorkerClient) -> None:
    assert (await worker.load("pirate")).timings.activate_s == 0.0015
    assert (await worker.pin("pirate")).pinned
    held = await worker.list_adapters()
    assert (held.adapters[0].tier, held.adapters[0].slots) == ("slot", (3,))
    assert held.default_adapters == (AdapterSelection("pirate", 1.0),)
    status = await worker.status()
    assert (status.state, status.slots.free, status.kv.free_blocks) == ("ready", 7, 75)
    assert (status.kv.cached_blocks, status.kv.prompt_tokens, status.kv.cached_tokens) == (5, 90, 30)
    assert (await worker.model_info()).eos_token_ids == (2,)
    assert await worker.unload("pirate") == held.adapters[0].digest
    with pytest.raises(AdapterNotLoadedError):
        await worker.unload("other")
    with pytest.raises(RequestDeadlineError):
        await worker.unload("slow", timeout_s=0.2)


Fleet = tuple[FakeWorker, FakeWorker, HotslotClient]


@pytest.fixture
async def fleet(
    fake_store: MemoryStore, store_endpoint: str
) -> AsyncIterator[tuple[FakeWorker, FakeWorker, HotslotClient]]:
    """Two workers that placement knows, and a client of their deployment without a fallback."""
    first, second = FakeWorker("w-first"), FakeWorker("w-second")
    async with AsyncExitStack() as stack:
        fake_store.add("pirate", BASE)
        for worker in (first, second):
            fake_store.placement.start_worker(await stack.enter_async_context(serving(worker)))
        client = await stack.enter_async_context(HotslotClient(store_endpoint, None, options=NO_CHANNEL_RETRIES))
        yield first, second, client


async def test_the_best_worker_is_called_and_the_pick_is_reused(fleet: Fleet, fake_store: MemoryStore) -> None:
    first, second, client = fleet
    for _ in range(3):
        assert (await client.complete(GenerationRequest("Hi", PIRATE))).started.worker_id == "w-first"
    assert (len(first.inference.requests), len(second.inference.requests)) == (3, 0)
    assert fake_store.placement.picks == 1


async def test_a_pick_is_not_used_longer_than_it_says(fleet: Fleet, fake_store: MemoryStore) -> None:
    fake_store.placement.ttl_s = 0
    for _ in range(2):
        await fleet[2].complete(GenerationRequest("Hi", PIRATE))
    assert fake_store.placement.picks == 2


@pytest.mark.parametrize(
    "failure",
    [
        DrainingError("w-first"),
        QueueFullError("full", subject="queue"),
        QuotaExceededError("no room", subject="host memory"),
        UnavailableError("gone"),
    ],
)
async def test_a_failure_before_the_first_event_goes_to_the_next_worker(fleet: Fleet, failure: HotslotError) -> None:
    first, _, client = fleet
    first.inference.fail_first = [failure]
    assert (await client.complete(GenerationRequest("Hi", PIRATE))).started.worker_id == "w-second"


async def test_a_patient_client_tries_again_when_nobody_could_begin(fleet: Fleet, store_endpoint: str) -> None:
    first, second, _ = fleet
    for fake in (first, second):
        fake.inference.fail_first = [StoreUnavailableError("away"), QueueFullError("full", subject="queue")]
    async with HotslotClient(store_endpoint, None, options=NO_CHANNEL_RETRIES, patience_s=30.0) as client:
        assert (await client.complete(GenerationRequest("Hi", PIRATE))).started.worker_id == "w-first"


async def test_patience_ends_with_the_failure_of_the_last_try(fleet: Fleet, store_endpoint: str) -> None:
    first, second, _ = fleet
    for fake in (first, second):
        fake.inference.fail_first = [UnavailableError("gone", retry_after_s=60.0)]
    async with HotslotClient(store_endpoint, None, options=NO_CHANNEL_RETRIES, patience_s=30.0) as client:
        with pytest.raises(UnavailableError, match="gone"):
            await client.complete(GenerationRequest("Hi", PIRATE))
    assert len(first.inference.requests) + len(second.inference.requests) <= 2, "not before it was asked to"


async def test_a_patient_client_does_not_repeat_what_has_begun(fleet: Fleet, store_endpoint: str) -> None:
    first, second, _ = fleet
    first.inference.fail_after_pieces = (1, UnavailableError("gone"))
    async with HotslotClient(store_endpoint, None, options=NO_CHANNEL_RETRIES, patience_s=30.0) as client:
        with pytest.raises(UnavailableError, match="gone"):
            await client.complete(GenerationRequest("Hi", PIRATE))
    assert not second.inference.requests


async def test_a_failure_after_the_first_event_is_never_retried(fleet: Fleet) -> None:
    first, second, client = fleet
    first.inference.fail_after_pieces = (1, UnavailableError("gone"))
    seen: list[GenerationEvent] = []

    async def read() -> None:
        async for event in client.generate(GenerationRequest("Hi", PIRATE)):
            seen.append(event)  # noqa: PERF401 (what came before the failure is the point)

    with pytest.raises(UnavailableError, match="gone"):
        await read()
    assert [type(event) for event in seen] == [Started, Chunk]
    assert not second.inference.requests


async def test_what_another_worker_would_refuse_as_well_is_not_retried(fleet: Fleet) -> None:
    first, second, client = fleet
    for failure in (AdapterNotFoundError("pirate"), InternalError("bug")):
        first.inference.fail_first = [failure]
        with pytest.raises(type(failure)):
            await client.complete(GenerationRequest("Hi", PIRATE))
    assert not second.inference.requests


async def test_a_worker_that_is_gone_is_passed_over_and_asked_about_again(
    fleet: Fleet, fake_store: MemoryStore, unused_tcp_port: int
) -> None:
    client = fleet[2]
    fake_store.placement.start_worker(f"127.0.0.1:{unused_tcp_port}")
    fake_store.placement.workers.insert(0, fake_store.placement.workers.pop())
    for _ in range(2):
        assert (await client.complete(GenerationRequest("Hi", PIRATE))).started.worker_id == "w-first"
    assert fake_store.placement.picks == 2, "the pick that named the lost worker is dropped"


@pytest.mark.parametrize("failure", [CoordinationUnavailableError("no redis"), NoWorkersError("none")])
async def test_without_placement_the_configured_worker_is_called(
    fake_store: MemoryStore, store_endpoint: str, worker_endpoint: str, failure: HotslotError
) -> None:
    fake_store.placement.failure = failure
    async with HotslotClient(store_endpoint, worker_endpoint, options=NO_CHANNEL_RETRIES) as client:
        assert (await client.complete(GenerationRequest("Hi", PIRATE))).started.worker_id == "w-1"
    async with HotslotClient(store_endpoint, None, options=NO_CHANNEL_RETRIES) as client:
        with pytest.raises(type(failure)):
            await client.complete(GenerationRequest("Hi", PIRATE))


async def test_without_routing_placement_is_not_asked(
    fleet: Fleet, fake_store: MemoryStore, store_endpoint: str, worker_endpoint: str
) -> None:
    async with HotslotClient(store_endpoint, worker_endpoint, route=False) as client:
        assert (await client.complete(GenerationRequest("Hi", PIRATE))).started.worker_id == "w-1"
    assert fake_store.placement.picks == 0


async def test_while_placement_is_away_the_last_pick_is_used_and_nobody_waits_for_it_each_time(
    fleet: Fleet, fake_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotslot.clients.routing.AWAY_S", 3600.0)
    fake_store.placement.ttl_s = 0
    request = GenerationRequest("Hi", PIRATE)
    await fleet[2].complete(request)
    fake_store.placement.failure = CoordinationUnavailableError("no redis")
    for _ in range(5):
        assert (await fleet[2].complete(request)).started.worker_id == "w-first"
    assert fake_store.placement.picks == 2


async def test_requests_that_come_at_once_ask_placement_once(fleet: Fleet, fake_store: MemoryStore) -> None:
    request = GenerationRequest("Hi", PIRATE)
    await asyncio.gather(*(fleet[2].complete(request) for _ in range(10)))
    assert fake_store.placement.picks == 1


async def test_a_pool_without_workers_is_asked_about_again_at_once(fleet: Fleet, fake_store: MemoryStore) -> None:
    workers, fake_store.placement.workers = fake_store.placement.workers, []
    request = GenerationRequest("Hi", PIRATE)
    with pytest.raises(NoWorkersError):
        await fleet[2].complete(request)
    fake_store.placement.workers = workers
    assert (await fleet[2].complete(request)).started.worker_id == "w-first"
