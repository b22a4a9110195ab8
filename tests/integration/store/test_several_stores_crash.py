"""SIGKILL of one store of two, and servers that stop: what was acknowledged is there at the other store, at once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hotslot.errors import BadOffsetError, HotslotError, QuotaExceededError, UnavailableError, UploadBusyError
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.fake_hub import FakeHub
from tests.support.several_stores import AT_ONCE, SharedPlace, SharedServices, shared_services
from tests.support.store import StoreClient
from tests.support.store_model import Content, Shown
from tests.support.store_process import StoreForks, StoreProcess, store_forks
from tests.support.store_workload import KINDS, Sample, Workload, make_samples
from tests.support.waiting import until

NUM_CLIENTS = 4
NUM_SAMPLES = 5
MAX_QUIET_S = 0.25
SETTLE_S = 1.0
"""Time in which PostgreSQL ends what a store that was killed had begun."""
PATIENCE_S = 90.0
PAUSE_S = 20.0
RETRIABLE = (UnavailableError, QuotaExceededError, BadOffsetError, UploadBusyError)
NAMES = ("one", "two")


@dataclass
class Life:
    """A store that runs."""

    process: StoreProcess
    client: StoreClient
    stack: AsyncExitStack


@dataclass
class TwoStores:
    """Two stores through many lives, with clients that each call one of them at a time."""

    place: SharedPlace
    forks: StoreForks
    hub: FakeHub
    rng: random.Random
    samples: list[Sample]
    lives: dict[str, Life] = field(default_factory=dict)
    clients: list[Workload] = field(default_factory=list)
    at: dict[str, str] = field(default_factory=dict)
    """The store that a client calls."""
    dying: str = ""
    is_enough: bool = False
    under_way: Counter[str] = field(default_factory=Counter)
    num_retries: int = 0
    num_kills: int = 0

    async def start(self, name: str, **settings: object) -> None:
        folder = self.place.folder / name
        folder.mkdir(exist_ok=True)
        chosen = {
            **AT_ONCE,
            "import_roots": self.place.folder / "imports",
            "hub_endpoint": self.hub.endpoint,
            **settings,
        }
        stack = AsyncExitStack()
        process = await stack.enter_async_context(self.forks.store(folder, **self.place.settings(**chosen)))
        client = await stack.enter_async_context(process.client())
        self.lives[name] = Life(process, client, stack)

    async def stop(self, name: str) -> None:
        await self.lives.pop(name).stack.aclose()

    async def work(self, workload: Workload, until_s: float) -> None:
        """Call after call; one that fails and can be made again is settled by what the stores show."""
        loop = asyncio.get_running_loop()
        while loop.time() < until_s and not self.is_enough:
            name = self.at[workload.name]
            try:
                await workload.step(self.lives[name].client)
            except RETRIABLE:
                if self.dying == name:
                    return
                self.num_retries += 1
                await self.settle(workload)
            except HotslotError:
                if self.dying != name:
                    raise
                return

    async def settle(self, workload: Workload) -> None:
        """Ask any store what came of a call that failed, for as long as the servers may be away."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await asyncio.sleep(SETTLE_S)
                name = self.rng.choice([name for name in self.lives if name != self.dying])
                try:
                    client = self.lives[name].client
                    await workload.settle(client, await shown(client, workload.name))
                except RETRIABLE:
                    continue
                self.at[workload.name] = name
                return

    async def kill_during(self, target: str) -> None:
        """Kill one of the stores while it has a call of a kind under way, and go on with its clients at the other."""
        victim = self.rng.choice(NAMES)
        self.at = {workload.name: self.rng.choice(NAMES) for workload in self.clients}
        self.at[self.clients[0].name] = victim
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        working = [asyncio.ensure_future(self.work(workload, begin_s + 3600)) for workload in self.clients]
        await asyncio.wait(working, timeout=self.rng.uniform(0, MAX_QUIET_S))
        while target not in self._under_way_at(victim) and loop.time() < begin_s + 5:
            await asyncio.wait(working, timeout=0.002, return_when=asyncio.FIRST_COMPLETED)
            for ended in (work for work in working if work.done()):
                ended.result()
        self.under_way.update(self._under_way_at(victim))
        self.dying = victim
        await self.lives[victim].process.kill()
        self.num_kills += 1
        # Where a call failed before the kill, its client may settle it at the other store meanwhile, and work on there.
        await until(
            lambda: all(
                work.done() or self.at[workload.name] != victim
                for work, workload in zip(working, self.clients, strict=True)
            ),
            timeout_s=PATIENCE_S,
        )
        left = [workload for workload in self.clients if self.at[workload.name] == victim]
        for workload in left:
            working[self.clients.index(workload)].result()
        # At the other store, which goes on working for its own clients meanwhile.
        await asyncio.gather(*(self.settle(workload) for workload in left))
        self.is_enough = True
        await asyncio.gather(*working)
        self.is_enough = False
        await self.stop(victim)
        self.dying = ""
        await self.start(victim)

    def _under_way_at(self, name: str) -> list[str]:
        return [each.under_way for each in self.clients if self.at[each.name] == name and each.under_way]

    async def check(self) -> None:
        """See that both stores show exactly what the clients know, and give out exactly those bytes."""
        for life in self.lives.values():
            for workload in self.clients:
                assert (await shown(life.client, workload.name)) == workload.state.shown()
            live = [content for workload in self.clients if (content := workload.state.live)]
            for digest in {self._weights_of(version) for content in live for version in content.versions}:
                assert digest_of(await life.client.read(digest)) == digest

    async def end(self) -> None:
        """When everything is deleted, nothing is left in object storage, nor on a disk."""
        for name in list(self.lives):
            await self.stop(name)
        await self.start("one", delete_grace_s=0, upload_ttl_s=0)
        client = self.lives["one"].client
        for workload in self.clients:
            if workload.state.live is not None:
                await client.call("DeleteAdapter", pb.DeleteAdapterRequest(name=workload.name))
            for _ in workload.state.deleted:
                await client.call("UndeleteAdapter", pb.UndeleteAdapterRequest(name=workload.name))
                await client.call("DeleteAdapter", pb.DeleteAdapterRequest(name=workload.name))
        await self.start("two", upload_ttl_s=0)
        objects = self.place.objects()
        await until(lambda: not objects.list_small("blobs") and not objects.list_small("uploads"))
        await until(lambda: not any(self.place.local_blobs(f"{name}/data") for name in NAMES))
        for name in list(self.lives):
            await self.stop(name)

    def _weights_of(self, digest: str) -> str:
        return next(sample.weights_digest for sample in self.samples if sample.digest == digest)


async def shown(client: StoreClient, name: str) -> Shown:
    """What a store shows of a name."""
    live, deleted = None, []
    request = pb.ListAdaptersRequest(show_deleted=True, page_size=1000, name_prefix=name)
    for found in (await client.call("ListAdapters", request)).adapters:
        tags = sorted((tag.name, tag.digest) for tag in found.tags)
        if found.HasField("delete_time"):
            deleted.append((found.num_versions, tuple(tags)))
            continue
        listed = await client.call("ListVersions", pb.ListVersionsRequest(adapter=name))
        live = Content(frozenset(version.digest for version in listed.versions), frozenset(tags))
    return Shown(live, tuple(sorted(deleted)))


@asynccontextmanager
async def two_stores(folder: Path, hub: FakeHub, services: SharedServices, seed: int) -> AsyncIterator[TwoStores]:
    (folder / "imports").mkdir()
    samples = make_samples(folder / "imports", hub, NUM_SAMPLES)
    with store_forks() as forks:
        both = TwoStores(services.place(folder), forks, hub, random.Random(seed), samples)
        await asyncio.gather(*(both.start(name) for name in NAMES))
        await both.lives["one"].client.register()
        both.clients = [
            Workload(f"bot-{number}", samples, random.Random(f"{seed} {number}"), lambda kind: None, is_alone=False)
            for number in range(NUM_CLIENTS)
        ]
        yield both


async def crash(both: TwoStores, num_kills: int) -> None:
    for number in range(num_kills):
        await both.kill_during(KINDS[number % len(KINDS)])
        if number % 10 == 9:
            await both.check()
            report(both)
    await both.check()


def report(both: TwoStores) -> None:
    num_calls = sum(workload.num_calls for workload in both.clients)
    print(f"{both.num_kills} kills, {num_calls} calls answered, {both.num_retries} made again; {dict(both.under_way)}")  # noqa: T201


@pytest.fixture(scope="module")
def services() -> Iterator[SharedServices]:
    with shared_services() as found:
        yield found


async def test_what_a_killed_store_acknowledged_the_other_one_has(
    tmp_path: Path, hub: FakeHub, services: SharedServices
) -> None:
    async with two_stores(tmp_path, hub, services, seed=0) as both:
        await crash(both, 4)
        await both.end()
        report(both)


@contextmanager
def stopped(server: "object") -> Iterator[None]:
    server.stop()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        server.start()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", ["postgres", "s3"])
@pytest.mark.parametrize("how", ["paused", "killed"])
async def test_a_server_that_is_away_for_a_while_loses_nothing(
    tmp_path: Path, hub: FakeHub, services: SharedServices, what: str, how: str
) -> None:
    server = services.postgres if what == "postgres" else services.s3
    async with two_stores(tmp_path, hub, services, seed=2) as both:
        both.at = {workload.name: both.rng.choice(NAMES) for workload in both.clients}
        until_s = asyncio.get_running_loop().time() + PAUSE_S + 20
        working = [asyncio.ensure_future(both.work(workload, until_s)) for workload in both.clients]
        await asyncio.wait(working, timeout=3)

        def be_away() -> None:
            with server.paused() if how == "paused" else stopped(server):
                asyncio.run(asyncio.sleep(PAUSE_S))

        await asyncio.to_thread(be_away)
        await asyncio.gather(*working)
        await both.check()
        await both.end()
        report(both)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", range(1, 5))
async def test_what_200_killed_stores_acknowledged_the_other_one_has(
    tmp_path: Path, hub: FakeHub, services: SharedServices, seed: int
) -> None:
    # In four parts: a busy machine takes a quarter of an hour and more for each.
    async with two_stores(tmp_path, hub, services, seed=seed) as both:
        await crash(both, 50)
        await both.end()
        report(both)
