"""Generate over real sockets, with the real engine."""

import asyncio

import grpc
import pytest

from hotslot.errors import (
    DigestMismatchError,
    DrainingError,
    HotslotError,
    QueueFullError,
    RequestDeadlineError,
    StepFailedError,
    StoreUnavailableError,
)
from hotslot.ids import DEFAULT_TENANT, TenantId
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.rpc.status import from_rpc_error
from tests.support.echo_model import EOS, UNHURRIED_STEP_S, EchoModel, echo_model, voice
from tests.support.echo_worker import Calls, RunningWorker, make_request, run_worker
from tests.support.memory_blobs import CHUNK_BYTES
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until, until_async

ENDLESS = {"text": "endless"}


async def error_of(call: object) -> HotslotError:
    with pytest.raises(grpc.RpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def test_the_base_answers_when_no_adapter_is_named(calls: Calls, running: RunningWorker) -> None:
    answer = await calls.generate()
    assert answer.text == "base"
    assert answer.token_ids[0] == [*b"base", EOS]
    assert list(answer.started.adapters) == []
    assert answer.started.worker_id == running.worker.worker_id
    assert answer.started.base_model_digest == running.model.spec.digest
    assert answer.started.num_prompt_tokens == len("hello")
    finished = answer.finished[0]
    assert finished.reason == pb.FINISH_REASON_STOP
    assert finished.stop_token_id == EOS
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (5, 5)
    assert 0 <= finished.timings.queue.ToMicroseconds() <= finished.timings.time_to_first_token.ToMicroseconds()
    assert finished.timings.time_to_first_token.ToMicroseconds() <= finished.timings.total.ToMicroseconds()


async def test_a_cold_adapter_is_pulled_and_named_with_its_digest(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    digest = store.add("bot", model.spec.digest)
    answer = await calls.generate("bot")
    assert answer.text == voice(digest)
    (served,) = answer.started.adapters
    assert (served.reference, served.digest, served.weight) == ("bot:latest", digest, 1.0)
    assert answer.finished[0].timings.adapter_load.ToMicroseconds() > 0


async def test_an_adapters_end_tokens_end_its_own_answers_and_no_others(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    star = ord("*")
    ending = store.add("ending", model.spec.digest, end_token_ids=(star,))
    other = store.add("other", model.spec.digest, seed=1)
    ended, going_on, mixed = await asyncio.gather(
        calls.generate("ending"), calls.generate("other"), calls.generate("other", "ending=2")
    )
    assert ended.text == voice(ending).partition("*")[0]
    assert (ended.finished[0].reason, ended.finished[0].stop_token_id) == (pb.FINISH_REASON_STOP, star)
    assert going_on.text == voice(other)
    assert mixed.finished[0].stop_token_id == star
    ignoring = await calls.generate("ending", stop=pb.StopConditions(ignore_eos=True, max_tokens=11))
    assert ignoring.text.startswith(voice(ending))


async def test_every_row_gets_the_adapters_it_asked_for(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    digests = {name: store.add(name, model.spec.digest) for name in ("a", "b", "c", "d", "e", "f")}
    answers = await asyncio.gather(*(calls.generate(name) for name in [*digests] * 5))
    assert [answer.text for answer in answers] == [voice(digest) for digest in digests.values()] * 5


async def test_a_mix_is_served_with_its_weights(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    first, second = store.add("a", model.spec.digest), store.add("b", model.spec.digest)
    answer = await calls.generate("a=0.5", "b=-2")
    assert answer.text == "+".join(sorted([voice(first, 0.5), voice(second, -2)]))


async def test_references_to_one_version_add_up(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    digest = store.add("a", model.spec.digest)
    store.move_tag("a", "v1", digest)
    answer = await calls.generate("a=0.5", "a:v1=2")
    assert answer.text == voice(digest, 2.5)
    assert [served.weight for served in answer.started.adapters] == [0.5, 2.0]


async def test_fifty_requests_for_one_cold_adapter_cause_one_pull(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    store.add("bot", model.spec.digest)
    await asyncio.gather(*(calls.generate("bot") for _ in range(50)))
    assert store.blobs.read_offsets == [0]


async def test_a_broken_stream_is_continued_where_it_broke(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    digest = store.add("bot", model.spec.digest, size_bytes=5 * CHUNK_BYTES)
    store.blobs.break_reads_after.extend([2 * CHUNK_BYTES, CHUNK_BYTES])
    assert (await calls.generate("bot")).text == voice(digest)
    assert store.blobs.read_offsets == [0, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]


async def test_a_stream_that_never_gets_on_is_given_up(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    store.add("bot", model.spec.digest)
    store.blobs.break_reads_after.extend([0] * 50)
    assert isinstance(await error_of(calls.generate("bot")), StoreUnavailableError)
    assert len(store.blobs.read_offsets) == 5


async def test_bytes_that_are_not_their_digests_are_never_served(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    store.add("bot", model.spec.digest)
    (blob,) = store.blobs.published[DEFAULT_TENANT].values()
    blob.data = b"X" + blob.data[1:]
    assert isinstance(await error_of(calls.generate("bot")), DigestMismatchError)
    assert model.decoder.decoded == []


async def test_choices_are_independent_and_counted(calls: Calls) -> None:
    answer = await calls.generate(num_choices=3, stop=pb.StopConditions(max_tokens=2))
    assert answer.texts == {0: "ba", 1: "ba", 2: "ba"}
    assert {f.reason for f in answer.finished.values()} == {pb.FINISH_REASON_LENGTH}


async def test_a_stop_string_across_tokens_ends_the_answer_before_it(calls: Calls, running: RunningWorker) -> None:
    running.model.runner.step_s = 0.02
    answer = await calls.generate(**ENDLESS, stop=pb.StopConditions(stop_strings=["eba"]))
    assert answer.text == "bas"
    assert answer.finished[0].stop_string == "eba"
    assert answer.finished[0].usage.completion_tokens == len("baseba")
    await until_async(lambda: nothing_runs(running))


async def test_an_answer_without_a_limit_ends_with_the_context(calls: Calls) -> None:
    answer = await calls.generate(**ENDLESS)
    assert answer.finished[0].reason == pb.FINISH_REASON_LENGTH
    assert answer.finished[0].usage.completion_tokens == 512 - len("endless")


async def test_logprobs_come_with_every_token(calls: Calls) -> None:
    answer = await calls.generate(logprobs=pb.LogprobOptions(enabled=True, num_alternatives=2))
    assert [item.token_id for item in answer.logprobs[0]] == answer.token_ids[0]
    assert [a.logprob for a in answer.logprobs[0][0].alternatives] == [-1.0, -2.0]


async def test_prompt_logprobs_come_once_in_the_first_message(calls: Calls) -> None:
    await calls.generate(text="hello, world and all")
    options = pb.LogprobOptions(prompt=True, num_alternatives=2)
    answer = await calls.generate(text="hello, world and all", logprobs=options, num_choices=2)
    prompt = list(b"hello, world and all")
    assert [(item.token_id, item.logprob) for item in answer.started.prompt_logprobs] == [(t, -t) for t in prompt[1:]]
    assert all(len(item.alternatives) == 2 for item in answer.started.prompt_logprobs)
    assert answer.logprobs == {0: [], 1: []}


async def test_usage_says_how_much_of_the_prompt_was_cached(running: RunningWorker) -> None:
    acme, zeta = await running.calls(TenantId("acme")), await running.calls(TenantId("zeta"))
    text = "a prompt of more than two blocks of tokens"
    answers = [await calls.generate(text=text) for calls in (acme, acme, zeta)]
    assert [answer.finished[0].usage.cached_tokens for answer in answers] == [0, 32, 0]


async def test_nothing_not_even_headers_comes_before_the_first_token(calls: Calls, model: EchoModel) -> None:
    model.runner.gate.clear()
    call = calls.inference.Generate(make_request(), timeout=60)
    headers = asyncio.create_task(call.initial_metadata())
    await asyncio.sleep(0.1)
    assert not headers.done()
    model.runner.gate.set()
    await headers
    kinds = [message.WhichOneof("event") async for message in call]
    assert kinds[:2] == ["started", "chunk"]
    assert kinds[-1] == "finished"


async def nothing_runs(running: RunningWorker) -> bool:
    snapshot = await running.parts.engine.inspect()
    return snapshot.running == snapshot.waiting == 0 and snapshot.free_blocks == snapshot.num_blocks


async def test_a_client_that_goes_away_frees_everything(
    calls: Calls, running: RunningWorker, store: MemoryStore, model: EchoModel
) -> None:
    store.add("bot", model.spec.digest)
    model.runner.step_s = UNHURRIED_STEP_S
    first = calls.inference.Generate(make_request("bot", **ENDLESS), timeout=60)
    await first.read()
    others = [calls.inference.Generate(make_request("bot", **ENDLESS), timeout=60) for _ in range(7)]
    await until(lambda: running.parts.engine.open_sequences == 8)
    for stream in (first, *others):
        stream.cancel()
    await until_async(lambda: nothing_runs(running))
    await until(lambda: running.worker.in_flight == 0)
    running.assert_nothing_is_held()


async def test_a_client_that_goes_away_while_its_adapter_loads_stops_the_pull(
    calls: Calls, running: RunningWorker, store: MemoryStore, model: EchoModel
) -> None:
    store.add("bot", model.spec.digest)
    store.blobs.reading.clear()
    stream = calls.inference.Generate(make_request("bot"), timeout=60)
    reading = asyncio.create_task(stream.read())
    await until(lambda: store.blobs.active_reads == 1)
    stream.cancel()
    await until(lambda: store.blobs.active_reads == 0 and running.worker.in_flight == 0)
    with pytest.raises(asyncio.CancelledError):
        await reading
    running.assert_nothing_is_held()


async def test_a_deadline_ends_the_sequences_on_the_worker(
    calls: Calls, running: RunningWorker, model: EchoModel
) -> None:
    model.runner.step_s = UNHURRIED_STEP_S
    with pytest.raises(grpc.RpcError) as caught:
        async for _ in calls.inference.Generate(make_request(**ENDLESS), timeout=0.3):
            pass
    assert isinstance(from_rpc_error(caught.value), RequestDeadlineError)
    await until_async(lambda: nothing_runs(running))
    await until(lambda: running.worker.in_flight == 0)


async def test_more_than_may_wait_is_refused_with_a_retry_hint(store_endpoint: str) -> None:
    model = echo_model(max_running=1, max_waiting=2)
    async with run_worker(model, store_endpoint) as running:
        calls = await running.calls()
        model.runner.gate.clear()
        streams = [calls.inference.Generate(make_request(), timeout=60) for _ in range(6)]
        await until(lambda: running.worker.in_flight == 6)
        reads = [asyncio.create_task(stream.read()) for stream in streams]
        model.runner.gate.set()
        await asyncio.wait(reads)
        errors = [from_rpc_error(read.exception()) for read in reads if read.exception()]  # type: ignore[arg-type]
    assert errors
    assert all(isinstance(error, QueueFullError) and error.retry_after_s for error in errors)


async def test_a_worker_where_nobody_may_wait_serves_as_many_as_it_has_rows(
    store: MemoryStore, store_endpoint: str
) -> None:
    model = echo_model(max_running=2, max_waiting=0)
    digest = store.add("cold", model.spec.digest)
    async with run_worker(model, store_endpoint) as running:
        calls = await running.calls()
        answer = await calls.generate("cold", num_choices=2)
        assert answer.texts == {0: voice(digest), 1: voice(digest)}
        with pytest.raises(grpc.RpcError) as caught:
            await calls.generate("cold", num_choices=3)
        assert isinstance(from_rpc_error(caught.value), QueueFullError)


async def test_a_step_that_fails_fails_its_requests_and_the_worker_goes_on(calls: Calls, model: EchoModel) -> None:
    run = model.runner.run
    model.runner.run = None  # type: ignore[method-assign, assignment]
    assert isinstance(await error_of(calls.generate()), StepFailedError)
    model.runner.run = run  # type: ignore[method-assign]
    assert (await calls.generate()).text == "base"


async def test_another_tenants_adapter_is_not_found_even_when_it_is_resident(
    calls: Calls, running: RunningWorker, store: MemoryStore, model: EchoModel
) -> None:
    digest = store.add("bot", model.spec.digest)
    await calls.generate("bot")
    other = await running.calls(TenantId("other"))
    for reference in ("bot", f"bot@{digest}"):
        error = await error_of(other.generate(reference))
        assert type(error).__name__ == "AdapterNotFoundError"
    assert await other.list() == []


async def test_a_draining_worker_takes_no_new_requests_and_finishes_the_running_ones(
    calls: Calls, running: RunningWorker, model: EchoModel
) -> None:
    model.runner.step_s = 0.002
    answering = asyncio.create_task(calls.generate(**ENDLESS, stop=pb.StopConditions(max_tokens=100)))
    await until_async(lambda: has_steps(calls))
    draining = calls.control.DrainWorker(control_pb.DrainWorkerRequest(), timeout=60)
    await until_async(lambda: is_draining(calls))
    assert isinstance(await error_of(calls.generate()), DrainingError)
    await draining
    assert running.worker.in_flight == 0
    assert len((await answering).token_ids[0]) == 100


async def has_steps(calls: Calls) -> bool:
    return (await calls.status()).steps > 1


async def is_draining(calls: Calls) -> bool:
    return (await calls.status()).state == control_pb.WORKER_STATE_DRAINING


async def test_model_info_says_what_is_served(calls: Calls, model: EchoModel) -> None:
    info = await calls.inference.GetModelInfo(pb.GetModelInfoRequest())
    assert info.base_model == "test/echo"
    assert info.base_model_digest == model.spec.digest
    assert (info.max_sequence_tokens, info.vocab_size, list(info.eos_token_ids)) == (512, 257, [EOS])
    assert (info.num_slots, info.slot_rank, info.max_rank, info.max_sequences) == (4, 8, 16, 4)
    assert info.has_chat_template
