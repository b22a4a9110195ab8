"""A worker whose engine breaks or hangs costs its callers nothing while another worker is well."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from hotslot.clients.hotslot import HotslotClient
from hotslot.clients.worker import WorkerClient
from hotslot.contract.control import WorkerState
from hotslot.contract.generation import AdapterSelection, GenerationRequest
from hotslot.errors import EngineFailedError, StepFailedError
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.rpc.status import from_rpc_error
from shared.coordination.directory import Directory
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.integration.fleet.test_forwarding import ENDLESS, hold, read_on
from tests.support.echo_model import UNHURRIED_STEP_S, EchoRunner
from tests.support.echo_worker import make_request
from tests.support.fleet import Member, fleet_of
from tests.support.waiting import until, until_async


class Breaking:
    """Stands in for a runner's steps: each fails while it is told to."""

    def __init__(self, runner: EchoRunner) -> None:
        self.calls = 0
        self.is_broken = True
        self._run: Callable[..., Any] = runner.run
        runner.run = self  # type: ignore[method-assign]

    def __call__(self, segments: Any) -> Any:
        self.calls += 1
        if self.is_broken:
            raise RuntimeError("out of memory")
        return self._run(segments)


async def test_an_engine_that_hangs_gives_its_requests_and_its_traffic_to_others_until_it_goes_on(
    store: Catalog, redis_url: str, directory: Directory
) -> None:
    async with fleet_of(2, store.endpoint, redis_url, engine_silence_s=1.0) as (front, holder):
        for name in ("one", "two"):
            await hold(directory, holder, store, name, front)

        async def state() -> WorkerState:
            records = (await directory.workers(SPEC.digest)).workers
            return next(r.state for r in records if r.info.worker_id == holder.worker_id)

        await (await holder.calls(marked=True)).generate("two")
        generated = (await (await holder.calls()).status()).generated_tokens
        await until(lambda: (s := holder.worker.last_snapshot) is not None and s.generated_tokens == generated)
        holder.model.runner.gate.clear()
        assert (await (await front.calls()).generate("one")).started.worker_id == front.worker_id

        async def is_passed_over() -> bool:
            sight = await front.router.view.look([])
            return await state() is WorkerState.DRAINING and sight is not None and len(sight.fleet.workers) == 1

        await until_async(is_passed_over)
        calls = await holder.calls()
        status = await calls.status()
        assert (status.state, status.generated_tokens) == (control_pb.WORKER_STATE_DRAINING, generated)
        assert (await calls.generate("two")).started.worker_id == front.worker_id, "its front door goes on"
        with pytest.raises(grpc.RpcError) as caught:
            await (await holder.calls(marked=True)).generate("two")
        assert isinstance(from_rpc_error(caught.value), EngineFailedError)
        holder.model.runner.gate.set()

        async def is_back() -> bool:
            return await state() is WorkerState.READY

        await until_async(is_back)
        assert (await (await holder.calls(marked=True)).generate("two")).started.worker_id == holder.worker_id
        await until(lambda: holder.worker.parts.engine.open_sequences == 0)


async def test_a_step_that_fails_before_the_first_token_is_computed_by_another_worker(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    for name in ("one", "two"):
        await hold(directory, holder, store, name, front)
    broken = Breaking(holder.model.runner)
    assert (await (await front.calls()).generate("one")).started.worker_id == front.worker_id
    assert broken.calls == 1
    broken.is_broken = False
    answer = await (await front.calls()).generate("two")
    assert answer.started.worker_id == holder.worker_id, "one request's step is no reason to avoid a worker"


async def test_a_step_that_fails_after_the_first_token_is_the_callers_to_see(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    front, holder = pair
    holder.model.runner.step_s = UNHURRIED_STEP_S
    await hold(directory, holder, store, "one", front)
    call = (await front.calls()).inference.Generate(make_request("one", **ENDLESS), timeout=60)
    assert (await call.read()).started.worker_id == holder.worker_id
    Breaking(holder.model.runner)
    with pytest.raises(grpc.RpcError) as caught:
        await read_on(call)
    assert isinstance(from_rpc_error(caught.value), StepFailedError)
    assert not front.model.decoder.decoded, "nobody else was asked"


async def test_a_request_that_breaks_every_step_is_run_on_two_workers_and_by_no_client_again(
    store: Catalog, redis_url: str, directory: Directory
) -> None:
    request = GenerationRequest("x", adapters=(AdapterSelection("one"),))
    async with fleet_of(3, store.endpoint, redis_url) as members:
        front, holder, _ = members
        await hold(directory, holder, store, "one", front)
        broken = [Breaking(member.model.runner) for member in members]

        def runs() -> list[int]:
            counts = [each.calls for each in broken]
            for each in broken:
                each.calls = 0
            return sorted(counts)

        with pytest.raises(grpc.RpcError, match="under incident") as caught:
            await (await front.calls()).generate("one")
        assert isinstance(from_rpc_error(caught.value), StepFailedError)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert runs() == [0, 1, 1]
        async with WorkerClient(front.endpoint) as worker:
            with pytest.raises(StepFailedError, match="under incident"):
                await worker.complete(request)
        assert runs() == [0, 1, 1]
        async with HotslotClient(store.endpoint, front.endpoint, patience_s=5) as client:
            with pytest.raises(StepFailedError, match="under incident"):
                await client.complete(request)
        assert runs() == [0, 1, 1]
