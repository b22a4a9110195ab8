"""Two stores behind one Service address, either killed again and again: what may be called again succeeds in time."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from hotslot import StoreClient
from hotslot.clients.blobs import RetryPolicy
from hotslot.errors import UnavailableError
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.status import from_rpc_error
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model, voice
from tests.support.echo_worker import RunningWorker, run_worker
from tests.support.service_proxy import ServiceProxy, service_proxy
from tests.support.several_stores import SharedPlace, SharedServices, shared_services
from tests.support.store_process import StoreForks, StoreProcess, store_forks
from tests.support.waiting import until
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.adapters.store_client import StoreTimeouts

PATIENCE_S = 120.0
AWAY_S = 0.5
T = TypeVar("T")


@pytest.fixture(scope="module")
def services() -> Iterator[SharedServices]:
    with shared_services() as found:
        yield found


@dataclass
class Deployment:
    """Two stores, the Service before them, and what calls it."""

    place: SharedPlace
    forks: StoreForks
    proxy: ServiceProxy
    stores: dict[str, tuple[StoreProcess, AsyncExitStack]] = field(default_factory=dict)
    num_again: int = 0
    """Calls that were made again after UNAVAILABLE."""

    async def start(self, name: str) -> None:
        folder = self.place.folder / name
        folder.mkdir(exist_ok=True)
        stack = AsyncExitStack()
        settings = self.place.settings(max_connection_age_s=2, grace_s=1)
        process = await stack.enter_async_context(self.forks.store(folder, **settings))
        self.stores[name] = process, stack
        self.proxy.add(f"127.0.0.1:{process.port}")

    async def kill(self, name: str) -> None:
        process, stack = self.stores.pop(name)
        await process.kill()
        self.proxy.remove(f"127.0.0.1:{process.port}")
        await stack.aclose()

    async def done(self, call: Callable[[], Awaitable[T]]) -> T:
        """The answer of a call that is made again while it is UNAVAILABLE; any other error is one that is for good."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await call()
                except UnavailableError:
                    self.num_again += 1
                    await asyncio.sleep(0.2)


@asynccontextmanager
async def deployment(folder: Path, services: SharedServices, forks: StoreForks) -> AsyncIterator[Deployment]:
    async with service_proxy() as proxy:
        found = Deployment(services.place(folder), forks, proxy)
        try:
            await asyncio.gather(found.start("one"), found.start("two"))
            await until(lambda: len(proxy.ready) == 2)
            yield found
        finally:
            for _, stack in found.stores.values():
                await stack.aclose()


async def generated(worker: RunningWorker, reference: str) -> str:
    """What a worker says with an adapter that it may have to fetch first."""
    try:
        return (await (await worker.calls()).generate(reference)).texts[0]
    except grpc.aio.AioRpcError as exc:
        raise from_rpc_error(exc) from exc


async def outlive(here: Deployment, folder: Path, num_kills: int) -> int:
    """Push, resolve, watch and generate through the Service while its stores are killed in turn; returns the rounds."""
    model, rng = echo_model(), random.Random(0)
    options = ChannelOptions(max_attempts=4)
    limits = ReferenceLimits(staleness_s=0.5, patience_s=1.0)
    seen: list[str] = []
    is_over = asyncio.Event()

    async def watch(client: StoreClient) -> None:
        revision = 0
        while not is_over.is_set():
            try:
                async for event in client.watch(revision):
                    revision = event.revision
                    seen.append(str(event.digest))
            except UnavailableError:
                here.num_again += 1

    async with (
        StoreClient(here.proxy.endpoint, options, RetryPolicy(max_stalls=20)) as client,
        StoreClient(here.proxy.endpoint, options, RetryPolicy(max_stalls=20)) as watching,
        run_worker(model, here.proxy.endpoint, references=limits, timeouts=StoreTimeouts(backoff_s=0.05)) as worker,
    ):
        await here.done(lambda: client.register_base_model(model.spec))
        watcher = asyncio.create_task(watch(watching))
        pushed: dict[str, str] = {}

        async def work() -> None:
            for number in range(10_000):
                if is_over.is_set():
                    return
                name = f"bot-{number}"
                draft = adapter(("q_proj", "v_proj"), spec=model.spec, rank=4, seed=number)
                draft.write(folder / name)
                result = await here.done(lambda path=folder / name, name=name: client.push(path, name))  # type: ignore[misc]
                pushed[name] = result.version.digest
                known = rng.choice(sorted(pushed))
                found = await here.done(lambda known=known: client.resolve(known))  # type: ignore[misc]
                assert found.version.digest == pushed[known]
                said = await here.done(lambda name=name: generated(worker, name))  # type: ignore[misc]
                assert said == voice(pushed[name])

        working = asyncio.create_task(work())
        try:
            for number in range(num_kills):
                await asyncio.wait([working, watcher], timeout=rng.uniform(0.2, 1.5))
                assert not working.done(), working.result()
                name = ("one", "two")[number % 2]
                await here.kill(name)
                await asyncio.sleep(AWAY_S)
                await here.start(name)
                await until(lambda: len(here.proxy.ready) == 2)
        finally:
            is_over.set()
        await working
        # Each publication is a version and its tag: two events, each once and in order.
        await until(lambda: len(seen) >= 2 * len(pushed))
        watcher.cancel()
        assert seen == [digest for digest in pushed.values() for _ in range(2)]
        for name, digest in pushed.items():
            resolved = await here.done(lambda name=name: client.resolve(name))  # type: ignore[misc]
            assert resolved.version.digest == digest
        return len(pushed)


async def run(folder: Path, services: SharedServices, num_kills: int) -> None:
    # Stores find object storage by the environment that the services have set.
    with store_forks() as forks:
        async with deployment(folder, services, forks) as here:
            num_pushed = await outlive(here, folder, num_kills)
    print(f"{num_kills} kills, {num_pushed} adapters pushed and served, {here.num_again} calls made again")  # noqa: T201
    assert num_pushed


async def test_callers_behind_a_service_outlive_its_stores(tmp_path: Path, services: SharedServices) -> None:
    await run(tmp_path, services, 2)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_callers_behind_a_service_outlive_many_kills(tmp_path: Path, services: SharedServices) -> None:
    await run(tmp_path, services, 30)
