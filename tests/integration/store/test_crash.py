"""SIGKILL in the middle of every kind of call: what was acknowledged is there after a restart, and nothing else is."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from hotslot.errors import BlobNotFoundError, HotslotError
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from tests.support.fake_hub import FakeHub
from tests.support.store import StoreClient
from tests.support.store_model import Content, Shown
from tests.support.store_process import StoreForks, StoreProcess
from tests.support.store_workload import KINDS, Sample, Workload, make_samples

NUM_CLIENTS = 6
NUM_SAMPLES = 10
MAX_QUIET_S = 0.25
"""How long a store works before the kill is aimed."""


@dataclass
class Crashes:
    """One folder, through many lives of the store that owns it."""

    folder: Path
    forks: StoreForks
    hub: FakeHub
    rng: random.Random
    samples: list[Sample]
    clients: list[Workload] = field(default_factory=list)
    under_way: Counter[str] = field(default_factory=Counter)
    """Calls that were under way at a kill, by kind."""
    begun: dict[str, asyncio.Event] = field(default_factory=dict)
    is_killed: bool = False
    num_read: int = 0
    """Blobs that were read while they were published."""

    @asynccontextmanager
    async def store(self, **settings: object) -> AsyncIterator[tuple[StoreProcess, StoreClient]]:
        imports, endpoint = self.folder / "imports", self.hub.endpoint
        defaults = {"import_roots": imports, "hub_endpoint": endpoint, "collect_every_s": 0.2}
        defaults["unreferenced_grace_s"] = 0.0
        async with self.forks.store(self.folder, **{**defaults, **settings}) as store, store.client() as client:
            yield store, client

    def began(self, kind: str) -> None:
        if kind in self.begun:
            self.begun[kind].set()

    async def life(self, target: str) -> None:
        """Check what is there, then work, and be killed during a call of the target's kind."""
        self.is_killed = False
        self.begun = {target: asyncio.Event()}
        async with self.store() as (store, client):
            await self.check(client)
            reading = asyncio.ensure_future(self._read_what_comes(client))
            working = [asyncio.ensure_future(self._work(client, workload)) for workload in self.clients]
            await asyncio.wait(working, timeout=self.rng.uniform(0.0, MAX_QUIET_S))
            while target not in {workload.under_way for workload in self.clients}:
                await self._aim(target, working)
            self.is_killed = True
            self.under_way.update(workload.under_way for workload in self.clients if workload.under_way)
            await store.kill()
            await asyncio.gather(reading, *working)

    async def _read_what_comes(self, client: StoreClient) -> None:
        """Read announced weights, as a worker does, until the kill; nothing that is checked later changes by it."""
        try:
            request = pb.WatchAdaptersRequest(announcements=True)
            async for event in client.adapters.WatchAdapters(request, metadata=client.metadata):
                if event.kind != pb.ADAPTER_EVENT_KIND_VERSION_COMING:
                    continue
                weights = self._weights_of(event.digest)
                with suppress(BlobNotFoundError):  # refused since, or deleted
                    announced = blob_pb2.ReadBlobRequest(digest=weights, announced=True)
                    messages = await client.stream("ReadBlob", announced)
                    assert digest_of(b"".join(message.data for message in messages)) == weights
                    self.num_read += 1
        except (HotslotError, grpc.aio.AioRpcError):
            if not self.is_killed:
                raise

    async def _aim(self, target: str, working: list["asyncio.Task[None]"]) -> None:
        """Wait until a call of a kind begins, and for a random part of the time that such a call takes."""
        self.begun[target].clear()
        begins = asyncio.ensure_future(self.begun[target].wait())
        await asyncio.wait({begins, *working}, return_when=asyncio.FIRST_COMPLETED)
        begins.cancel()
        for ended in (work for work in working if work.done()):
            ended.result()
        lasts_s = max(workload.durations_s.get(target, 0.0) for workload in self.clients)
        await asyncio.wait(working, timeout=self.rng.uniform(0.0, lasts_s))

    async def _work(self, client: StoreClient, workload: Workload) -> None:
        try:
            while True:
                await workload.step(client)
        except HotslotError:
            if not self.is_killed:
                raise

    async def check(self, client: StoreClient) -> None:
        """See that the store shows exactly what the clients know, and keeps exactly the files for that."""
        shown = await self._shown(client)
        for workload in self.clients:
            await workload.settle(client, shown.pop(workload.name, Shown(None, ())))
        assert not shown, "adapters that nobody made"
        expected = {self._weights_of(digest) for workload in self.clients for digest in workload.state.all_versions()}
        assert {f"sha256:{path.name}" for path in self.files("blobs")} == expected
        live = [workload.state.live for workload in self.clients]
        for digest in {self._weights_of(digest) for content in live if content for digest in content.versions}:
            assert digest_of(await client.read(digest)) == digest
        assert self.files("stages") == self.files("imports") == self.files("restores") == []
        uploads = {f"sha256:{path.stem}" for path in self.files("uploads")}
        assert uploads <= self._known_uploads()

    async def _shown(self, client: StoreClient) -> dict[str, Shown]:
        live: dict[str, Content] = {}
        deleted: dict[str, list[tuple[int, tuple[tuple[str, str], ...]]]] = {}
        request = pb.ListAdaptersRequest(show_deleted=True, page_size=1000)
        for found in (await client.call("ListAdapters", request)).adapters:
            tags = sorted((tag.name, tag.digest) for tag in found.tags)
            if found.HasField("delete_time"):
                deleted.setdefault(found.name, []).append((found.num_versions, tuple(tags)))
                continue
            listed = await client.call("ListVersions", pb.ListVersionsRequest(adapter=found.name))
            live[found.name] = Content(frozenset(version.digest for version in listed.versions), frozenset(tags))
        names = live.keys() | deleted.keys()
        return {name: Shown(live.get(name), tuple(sorted(deleted.get(name, [])))) for name in names}

    def _weights_of(self, digest: str) -> str:
        return next(sample.weights_digest for sample in self.samples if sample.digest == digest)

    def _known_uploads(self) -> set[str]:
        files = (data for sample in self.samples for data in sample.draft.files().values())
        own = (digest for workload in self.clients for digest in (*workload.uploaded, workload.upload.digest))
        return {*map(digest_of, files), *own}

    def files(self, part: str) -> list[Path]:
        return [path for path in (self.folder / "data" / part).rglob("*") if path.is_file()]

    async def end(self) -> None:
        """When everything is deleted and too old, no file is left."""
        async with self.store(delete_grace_s=0) as (store, client):
            await self.check(client)
            for workload in self.clients:
                if workload.state.live is not None:
                    await client.call("DeleteAdapter", pb.DeleteAdapterRequest(name=workload.name))
                for _ in workload.state.deleted:
                    await client.call("UndeleteAdapter", pb.UndeleteAdapterRequest(name=workload.name))
                    await client.call("DeleteAdapter", pb.DeleteAdapterRequest(name=workload.name))
            await store.kill()
        async with self.store(upload_ttl_s=0) as (_, client):
            assert (await client.call("ListAdapters", pb.ListAdaptersRequest(show_deleted=True))).adapters == []
            assert [self.files(part) for part in ("blobs", "uploads", "stages", "imports")] == [[]] * 4


async def crash_again_and_again(folder: Path, hub: FakeHub, forks: StoreForks, num_crashes: int, seed: int) -> None:
    (folder / "imports").mkdir()
    rng = random.Random(seed)
    samples = make_samples(folder / "imports", hub, NUM_SAMPLES)
    crashes = Crashes(folder, forks, hub, rng, samples)
    async with crashes.store() as (_, client):
        await client.register()
    crashes.clients = [
        Workload(f"bot-{i}", samples, random.Random(f"{seed} {i}"), crashes.began) for i in range(NUM_CLIENTS)
    ]
    for crash in range(num_crashes):
        await crashes.life(KINDS[crash % len(KINDS)])
    await crashes.end()
    num_calls = sum(workload.num_calls for workload in crashes.clients)
    print(f"{num_crashes} kills, {num_calls} calls answered; under way at a kill: {dict(crashes.under_way)}")  # noqa: T201
    assert set(KINDS) <= set(crashes.under_way)
    assert crashes.num_read


async def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, hub: FakeHub, forks: StoreForks) -> None:
    await crash_again_and_again(tmp_path, hub, forks, num_crashes=12, seed=0)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_what_was_acknowledged_survives_250_sigkills(tmp_path: Path, hub: FakeHub, forks: StoreForks) -> None:
    await crash_again_and_again(tmp_path, hub, forks, num_crashes=250, seed=1)
