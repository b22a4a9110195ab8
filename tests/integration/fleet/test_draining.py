"""A drained worker is passed over by everybody, and taken back into service by an undrain."""

import asyncio
import signal
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.contract.control import WorkerState
from hotslot.errors import ConflictError, DrainingError, RequestDeadlineError
from hotslot.ids import new_worker_id
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as pb
from hotslot.rpc.channel import open_channel
from hotslot.rpc.status import from_rpc_error
from shared.coordination.directory import Directory
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.support.echo_model import UNHURRIED_STEP_S
from tests.support.echo_worker import Calls, make_request
from tests.support.fleet import Member, until_known
from tests.support.waiting import until_async
from tests.support.worker_process import running_process
from worker_service.front.worker import ServingWorker

SERVING = health_pb2.HealthCheckResponse.SERVING


async def drain(calls: Calls, timeout_s: float = 60) -> None:
    await calls.control.DrainWorker(pb.DrainWorkerRequest(), timeout=timeout_s)


async def undrain(calls: Calls) -> None:
    await calls.control.UndrainWorker(pb.UndrainWorkerRequest(), timeout=60)


async def failure_of(call: Any) -> Exception:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def health(member: Member) -> dict[str, bool]:
    async with open_channel(member.endpoint) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        names = ("liveness", "readiness")
        answers = [await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60) for name in names]
    return {name: answer.status == SERVING for name, answer in zip(names, answers, strict=True)}


async def state_of(directory: Directory, member: Member) -> WorkerState | None:
    workers = (await directory.workers(SPEC.digest)).workers
    return next((w.state for w in workers if w.info.worker_id == member.worker_id), None)


async def test_a_drained_worker_is_alive_and_not_ready_and_comes_back(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, other = pair
    calls = await front.calls()
    assert await health(front) == {"liveness": True, "readiness": True}
    await drain(calls)
    await until_async(lambda: _is(front, ready=False))
    assert (await calls.status()).drained

    async def is_passed_over() -> bool:
        sight = await other.router.view.look([])
        listed = await state_of(directory, front) is WorkerState.DRAINING
        return listed and sight is not None and set(sight.fleet.workers) == {other.worker_id}

    await until_async(is_passed_over)
    assert (await calls.generate("one")).started.worker_id == other.worker_id

    await undrain(calls)
    await until_async(lambda: _is(front, ready=True))
    assert not (await calls.status()).drained
    await until_known(pair)
    assert await state_of(directory, front) is WorkerState.READY
    marked = await front.calls(marked=True)
    assert (await marked.generate("one")).started.worker_id == front.worker_id
    await undrain(calls)
    await drain(calls)
    assert isinstance(await failure_of(marked.generate()), DrainingError), "it can be drained again"


async def _is(member: Member, *, ready: bool) -> bool:
    return await health(member) == {"liveness": True, "readiness": ready}


async def test_an_undrain_ends_a_drain_that_waits_and_harms_no_stream(pair: list[Member]) -> None:
    front, _ = pair
    front.model.runner.step_s = UNHURRIED_STEP_S
    marked = await front.calls(marked=True)
    fields: dict[str, Any] = {"text": "endless"}
    stream = marked.inference.Generate(make_request(**fields), timeout=60)
    await stream.read()
    first, second = await front.calls(), await front.calls()
    waiting = [asyncio.create_task(drain(calls)) for calls in (first, second)]

    async def is_draining() -> bool:
        return (await first.status()).drained

    await until_async(is_draining)
    assert isinstance(await failure_of(drain(first, 0.2)), RequestDeadlineError)
    assert (await first.status()).drained
    await undrain(first)
    for drained in waiting:
        assert isinstance(await failure_of(drained), ConflictError)
    for _ in range(5):
        assert (await stream.read()).WhichOneof("event") == "chunk"
    assert (await marked.generate()).started.worker_id == front.worker_id
    stream.cancel()


async def test_an_engine_that_goes_on_makes_no_drained_worker_ready(pair: list[Member]) -> None:
    front, _ = pair
    calls = await front.calls()
    await drain(calls)
    await until_async(lambda: _is(front, ready=False))
    front.worker.engine_is_silent = True
    # The pulse finds that the engine answers.
    await until_async(_soon(lambda: not front.worker.engine_is_silent))
    assert await _is(front, ready=False)
    await undrain(calls)
    await until_async(lambda: _is(front, ready=True))


def _soon(holds: Any) -> Any:
    async def check() -> bool:
        return bool(holds())

    return check


async def test_a_worker_that_was_drained_ends_when_it_is_told(store: Catalog, redis_url: str) -> None:
    async with running_process(store.endpoint, redis_url=redis_url) as worker:
        await until_async(worker.is_ready)
        await drain(worker.calls)
        assert await worker.is_alive()
        assert not await worker.is_ready()
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.exit_code() == 0


async def test_a_worker_that_is_drained_while_it_starts_stays_so(store: Catalog, redis_url: str) -> None:
    async with running_process(store.endpoint, redis_url=redis_url, model="late 1.5") as worker:
        await until_async(worker.is_alive)
        await drain(worker.calls)

        async def is_loaded() -> bool:
            return bool((await worker.calls.status()).base_model_digest)

        await until_async(is_loaded)
        assert not await worker.is_ready()
        await undrain(worker.calls)
        await until_async(worker.is_ready)


async def test_a_worker_that_leaves_is_not_taken_back() -> None:
    worker = ServingWorker(new_worker_id())
    await worker.drain(1.0)
    await worker.retire()
    with pytest.raises(DrainingError):
        worker.undrain()
