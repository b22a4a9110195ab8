"""A store in memory and a fake worker on real sockets, and an adapter folder to push."""

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hotslot import ChannelOptions, RetryPolicy, StoreClient
from hotslot.ids import digest_of
from shared.server.grpc_server import RpcServer, ServerOptions, serve
from tests.support.fake_worker import FakeWorker
from tests.support.memory_store import MemoryStore

FAST_RETRIES = RetryPolicy(max_stalls=3, first_delay_s=0.001, stream_timeout_s=60.0)
# So that a stream's own retries are seen, and not the channel's.
NO_CHANNEL_RETRIES = ChannelOptions(max_attempts=1)
BASE = digest_of(b"base")
SERVED = ("adapter-0", "adapter-1", "adapter-2", "adapter-3", "pirate")
SERVED_REVISION = 11
"""Two changes an adapter, and one for the tag."""


def stocked_store(names: Iterable[str]) -> MemoryStore:
    """A store with a version of each adapter, the first of 1.2 MB and `adapter-1` with a tag; two are on a page."""
    store = MemoryStore()
    store.catalog.page_size = 2
    for number, name in enumerate(names):
        digest = store.add(name, BASE, rank=16, size_bytes=5_000 if number else 1_234_567)
        if name == "adapter-1":
            store.move_tag(name, "v1", digest)
    return store


@asynccontextmanager
async def serving(fake: MemoryStore | FakeWorker) -> AsyncIterator[str]:
    """The endpoint of a fake for as long as the block."""
    async with serve(fake.services(), ServerOptions(grace_s=0.1), observers=()) as server:
        await server.set_ready(True)
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def fake_store() -> MemoryStore:
    return stocked_store(f"adapter-{number}" for number in range(5))


@pytest.fixture
async def store_endpoint(fake_store: MemoryStore) -> AsyncIterator[str]:
    async with serving(fake_store) as endpoint:
        yield endpoint


@pytest.fixture
async def store(store_endpoint: str) -> AsyncIterator[StoreClient]:
    async with StoreClient(store_endpoint, NO_CHANNEL_RETRIES, FAST_RETRIES) as client:
        yield client


@pytest.fixture
def fake_worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
async def worker_endpoint(fake_worker: FakeWorker) -> AsyncIterator[str]:
    async with serving(fake_worker) as endpoint:
        yield endpoint


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    """1.5 MB of weights: several messages of an upload."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16}))
    (folder / "adapter_model.safetensors").write_bytes(random.Random(0).randbytes(1_500_000))
    return folder


class Served:
    """A store and a worker whose loop runs in another thread, as servers do."""

    def __init__(self) -> None:
        self.store, self.worker = stocked_store(SERVED), FakeWorker()
        self.endpoints: list[str] = []
        self.loop = asyncio.new_event_loop()
        self._stop: asyncio.Event
        self._servers: tuple[RpcServer, ...] = ()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        options = ServerOptions(grace_s=0.1)
        async with (
            serve(self.store.services(), options, observers=()) as store,
            serve(self.worker.services(), options, observers=()) as worker,
        ):
            self.endpoints = [f"127.0.0.1:{store.port}", f"127.0.0.1:{worker.port}"]
            self._servers = store, worker
            self._ready.set()
            await self._stop.wait()

    async def set_ready(self) -> None:
        """Say over the health service that both serve."""
        for server in self._servers:
            await server.set_ready(True)

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *exc: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def wait_for(self, event: Callable[[], asyncio.Event]) -> None:
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(event().wait(), 60), self.loop).result(61)


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as servers:
        yield servers
