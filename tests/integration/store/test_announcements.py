"""Weights that are read while their version is published: by those who were told, and with no other effect."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hotslot.content_files import StagedFile
from hotslot.errors import (
    AdapterNotFoundError,
    BlobNotFoundError,
    EtagMismatchError,
    TagNotFoundError,
    VersionNotFoundError,
)
from hotslot.formats.manifest import parse_manifest
from hotslot.ids import DEFAULT_TENANT, Digest, digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from hotslot.references import parse_reference
from shared.loops import Loops
from store_service.content.folder import BlobFolder
from store_service.content.keys import BlobKey
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.echo_worker import run_worker
from tests.support.store import StoreClient, error_of, open_store
from tests.support.waiting import until
from worker_service.adapters.coming import Arrivals

WAIT_S = 120
MOMENTS = ("before it has its name", "before the catalog has it")


@dataclass
class Held:
    """Publications that stop at one moment, while the gate is closed."""

    moment: str
    gate: threading.Event = field(default_factory=threading.Event)
    num_stopped: int = 0

    def stop(self, moment: str) -> None:
        if moment == self.moment:
            self.num_stopped += 1
            assert self.gate.wait(WAIT_S)


@pytest.fixture(params=MOMENTS)
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Publications of every store here stop at a moment; the gate is open until a test closes it."""
    found, take_in = Held(request.param), BlobFolder.take_in
    found.gate.set()

    def stopping(folder: BlobFolder, staged: StagedFile, key: BlobKey) -> None:
        found.stop(MOMENTS[0])
        take_in(folder, staged, key)
        found.stop(MOMENTS[1])

    monkeypatch.setattr(BlobFolder, "take_in", stopping)
    yield found
    found.gate.set()


async def announced_bytes(store: StoreClient, digest: str, announced: bool = True) -> bytes:
    request = blob_pb2.ReadBlobRequest(digest=digest, announced=announced)
    return b"".join(message.data for message in await store.stream("ReadBlob", request))


async def watch(store: StoreClient, announcements: bool) -> Any:
    call = store.adapters.WatchAdapters(
        pb.WatchAdaptersRequest(announcements=announcements), metadata=store.metadata, timeout=WAIT_S
    )
    await call.initial_metadata()
    return call


async def test_announced_weights_are_read_by_who_was_told_and_nothing_else_shows_before_they_are_durable(
    tmp_path: Path, held: Held
) -> None:
    async with open_store(tmp_path / "data") as store:
        await store.register()
        told, others = await watch(store, announcements=True), await watch(store, announcements=False)
        held.gate.clear()
        publishing = asyncio.ensure_future(store.push(adapter(), "bot:train", tags=["best"]))
        events = [await told.read(), await told.read()]
        coming = pb.ADAPTER_EVENT_KIND_VERSION_COMING
        assert [(it.kind, it.revision, it.adapter, it.tag) for it in events] == [
            (coming, 0, "bot", "train"), (coming, 0, "bot", "best"),
        ]  # fmt: skip
        manifest = parse_manifest(events[0].manifest_json, Digest(events[0].digest))
        await until(lambda: held.num_stopped == 1, timeout_s=WAIT_S)

        weights = manifest.weights_digest
        assert digest_of(await announced_bytes(store, weights)) == weights
        assert isinstance(await error_of(announced_bytes(store, weights, announced=False)), BlobNotFoundError)
        assert isinstance(await error_of(announced_bytes(store.of("another"), weights)), BlobNotFoundError)
        for reference in ("bot:train", "bot:best", f"bot@{manifest.digest}"):
            error = await error_of(store.resolve(reference))
            assert isinstance(error, AdapterNotFoundError | TagNotFoundError | VersionNotFoundError)
        assert await store.names() == []

        held.gate.set()
        assert (await publishing).digest == manifest.digest
        created = pb.ADAPTER_EVENT_KIND_VERSION_CREATED
        assert (await told.read()).kind == (await others.read()).kind == created, "others hear of changes alone"
        assert digest_of(await announced_bytes(store, weights, announced=False)) == weights


async def test_a_publication_that_fails_after_it_was_announced_leaves_nothing_to_read(
    tmp_path: Path, held: Held
) -> None:
    async with open_store(tmp_path / "data") as store:
        await store.register()
        told = await watch(store, announcements=True)
        error = await error_of(store.push(adapter(), "bot:train", tag_etag="r7"))
        assert isinstance(error, EtagMismatchError)
        event = await told.read()
        manifest = parse_manifest(event.manifest_json, Digest(event.digest))
        assert isinstance(await error_of(announced_bytes(store, manifest.weights_digest)), BlobNotFoundError)
        assert list((tmp_path / "data" / "stages").iterdir()) == []
        assert await store.names() == []


async def test_two_publications_of_the_same_bytes_are_read_until_the_last_has_ended(tmp_path: Path, held: Held) -> None:
    async with open_store(tmp_path / "data", max_admissions=2) as store:
        await store.register()
        told = await watch(store, announcements=True)
        files = await store.upload(adapter())
        held.gate.clear()
        publishing = [
            asyncio.ensure_future(
                store.call("CreateVersion", pb.CreateVersionRequest(reference=name, files=files, tag_etag="r7"))
            )
            for name in ("a:x", "b:x")
        ]
        events = [await told.read(), await told.read()]
        assert {event.adapter for event in events} == {"a", "b"}
        manifest = parse_manifest(events[0].manifest_json, Digest(events[0].digest))
        await until(lambda: held.num_stopped >= 1, timeout_s=WAIT_S)
        assert digest_of(await announced_bytes(store, manifest.weights_digest)) == manifest.weights_digest
        held.gate.set()
        for each in publishing:
            assert isinstance(await error_of(each), EtagMismatchError)
        assert isinstance(await error_of(announced_bytes(store, manifest.weights_digest)), BlobNotFoundError)


async def test_a_worker_has_the_weights_before_they_are_durable_and_serves_the_version_after(
    tmp_path: Path, held: Held
) -> None:
    model, reference = echo_model(), parse_reference("bot:train")
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(tmp_path / "data"))
        await store.register(model.spec)
        first = await store.push(adapter(spec=model.spec, seed=1), "bot:train")
        running = await stack.enter_async_context(run_worker(model, store.endpoint))
        references, tiers = running.parts.provider.references, running.parts.provider.tiers
        loops, arrivals = await stack.enter_async_context(Loops()), Arrivals(references, tiers)
        loops.restarted("bring", arrivals.run)
        loops.restarted("watch", lambda: running.parts.watch.run(references, first=arrivals.hear))
        calls = await running.calls()
        assert (await calls.generate("bot:train")).started.adapters[0].digest == first.digest
        await until(lambda: running.parts.watch.is_live(DEFAULT_TENANT), timeout_s=WAIT_S)

        held.gate.clear()
        publishing = asyncio.ensure_future(store.push(adapter(spec=model.spec, seed=2), "bot:train"))
        elsewhere = asyncio.ensure_future(store.push(adapter(spec=model.spec, seed=3), "unused:train"))
        await until(lambda: len(list(tiers.holdings.resident())) == 2, timeout_s=WAIT_S)
        assert (await calls.generate("bot:train")).started.adapters[0].digest == first.digest
        assert [it.digest for it in await calls.list()] == [first.digest], "what is not published shows nowhere"

        held.gate.set()
        second = await publishing
        assert tiers.holdings.is_read(DEFAULT_TENANT, Digest(second.digest))
        await elsewhere
        assert len(list(tiers.holdings.resident())) == 2, "a name that is not served here is nobody's business"
        await calls.load("bot:train")
        assert references.peek(DEFAULT_TENANT, reference).digest == second.digest  # type: ignore[union-attr]
        assert (await calls.generate("bot:train")).started.adapters[0].digest == second.digest
