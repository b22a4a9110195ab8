"""Two stores on one catalog and one object storage: what one acknowledges the other has, and neither takes it away."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hotslot import errors
from hotslot.codec import from_proto
from hotslot.contract.garbage import GarbageReport, Removal, RemovalKind
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from store_service.content import upload_parts
from tests.support.checkpoints import adapter
from tests.support.fake_hub import FakeHub
from tests.support.several_stores import AT_ONCE, SharedPlace, SharedServices, shared_services
from tests.support.store import StoreClient, bring, finish, hub_request
from tests.support.waiting import until, until_async

DATA = os.urandom(700_000)
NUM_ROUNDS = 6


@pytest.fixture(scope="module")
def services() -> Iterator[SharedServices]:
    with shared_services() as found:
        yield found


@pytest.fixture
def place(services: SharedServices, tmp_path: Path) -> SharedPlace:
    return services.place(tmp_path)


@pytest.fixture
async def stores(place: SharedPlace, hub: FakeHub) -> AsyncIterator[tuple[StoreClient, StoreClient]]:
    """Two, that know the tiny base model."""
    async with (
        place.store("one", hub_endpoint=hub.endpoint) as one,
        place.store("two", hub_endpoint=hub.endpoint) as two,
    ):
        await one.register()
        yield one, two


async def test_what_one_store_acknowledged_another_one_serves(stores: tuple[StoreClient, StoreClient]) -> None:
    one, two = stores
    version = await one.push(adapter(), "bot")
    assert (await two.resolve("bot")).digest == version.digest
    assert digest_of(await two.read(version.manifest.weights_digest)) == version.manifest.weights_digest
    await two.call("SetTag", pb.SetTagRequest(adapter="bot", tag="stable", digest=version.digest))
    assert (await one.resolve("bot:stable")).digest == version.digest


async def test_a_watch_goes_on_at_another_store_without_a_gap(stores: tuple[StoreClient, StoreClient]) -> None:
    digest = (await stores[0].push(adapter(), "bot")).digest

    async def move(number: int) -> None:
        request = pb.SetTagRequest(adapter="bot", tag=f"t{number}", digest=digest)
        await stores[number % 2].call("SetTag", request)

    moves = asyncio.gather(*(move(number) for number in range(12)))
    seen: list[int] = []
    while len(seen) < 14:
        store = stores[len(seen) % 2]
        request = pb.WatchAdaptersRequest(from_revision=seen[-1] if seen else 0)
        call = store.adapters.WatchAdapters(request, metadata=store.metadata)
        async for event in call:
            seen.append(event.revision)
            if len(seen) % 3 == 0 or len(seen) == 14:
                break
        call.cancel()
    await moves
    assert seen == list(range(1, 15))


async def test_an_upload_that_broke_goes_on_at_another_store(
    stores: tuple[StoreClient, StoreClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_parts, "PART_BYTES", 100_000)
    one, two = stores
    status = blob_pb2.GetWriteStatusRequest(digest=digest_of(DATA))
    end = 0
    for store, end in ((one, 250_000), (two, 430_001), (one, 430_050)):
        offset = (await store.call("GetWriteStatus", status)).committed_size
        await store.write(DATA, offset=offset, end=end, finish=False)
        assert offset in (0, 250_000, 430_001)
    assert (await two.call("GetWriteStatus", status)).committed_size == 430_050
    await bring(two, "some.bin", DATA)
    assert (await one.call("GetWriteStatus", status)).complete


async def test_files_that_one_store_received_another_one_admits(stores: tuple[StoreClient, StoreClient]) -> None:
    one, two = stores
    files = await one.upload(adapter())
    missing = blob_pb2.FindMissingBlobsRequest(digests=[file.digest for file in files])
    assert (await two.call("FindMissingBlobs", missing)).missing_digests == []
    version = (await two.call("CreateVersion", pb.CreateVersionRequest(reference="bot", files=files))).version
    assert (await one.resolve("bot")).digest == version.digest


async def test_calls_at_once_for_files_that_another_store_received_all_succeed(
    stores: tuple[StoreClient, StoreClient],
) -> None:
    one, two = stores
    files = await one.upload(adapter())
    requests = [pb.CreateVersionRequest(reference=f"bot-{number}", files=files) for number in range(6)]
    made = await asyncio.gather(*(two.call("CreateVersion", request) for request in requests))
    assert len({answer.version.digest for answer in made}) == 1


async def test_parts_that_do_not_make_the_file_are_forgotten(
    stores: tuple[StoreClient, StoreClient], place: SharedPlace
) -> None:
    one, two = stores
    await one.write(b"x" * 1000 + DATA[1000:], digest=digest_of(DATA), end=5000, finish=False)
    with pytest.raises(errors.DigestMismatchError):
        await two.write(DATA, offset=5000)
    await bring(two, "some.bin", DATA)
    assert (await one.call("GetWriteStatus", blob_pb2.GetWriteStatusRequest(digest=digest_of(DATA)))).complete


async def test_epochs_grow_over_all_stores(stores: tuple[StoreClient, StoreClient]) -> None:
    epochs = [(await stores[turn % 2].call("IssueEpoch", pb.IssueEpochRequest())).epoch for turn in range(6)]
    assert epochs == sorted(set(epochs))


async def test_policies_are_the_catalogs(stores: tuple[StoreClient, StoreClient]) -> None:
    one, two = stores
    await one.push(adapter(), "bot")
    await one.call("SetAdapterPolicy", pb.SetAdapterPolicyRequest(adapter="bot", min_replicas=2))
    found = await two.call("GetAdapterPolicy", pb.GetAdapterPolicyRequest(adapter="bot"))
    assert found.policy.min_replicas == 2


async def test_what_is_acknowledged_stays_readable_while_stores_delete_and_collect_the_same_content(
    place: SharedPlace,
) -> None:
    async with place.store("one", **AT_ONCE) as one, place.store("two", **AT_ONCE) as two:
        await one.register()
        draft = adapter()
        files = {store.endpoint: await store.upload(draft) for store in (one, two)}

        async def come_and_go(store: StoreClient, other: StoreClient, name: str) -> None:
            for _ in range(NUM_ROUNDS):
                request = pb.CreateVersionRequest(reference=name, files=files[store.endpoint])
                version = (await store.call("CreateVersion", request)).version
                for reader in (store, other):
                    weights = await reader.read(version.manifest.weights_digest)
                    assert digest_of(weights) == version.manifest.weights_digest
                deletion = pb.DeleteVersionRequest(adapter=name, digest=version.digest, force=True)
                await store.call("DeleteVersion", deletion)

        await asyncio.gather(
            *(come_and_go(one, two, f"one-{i}") for i in range(2)),
            *(come_and_go(two, one, f"two-{i}") for i in range(2)),
        )
        await until(lambda: not place.objects().list_small("blobs"))
        await until(lambda: place.local_blobs("one") == place.local_blobs("two") == [])


async def test_the_same_import_through_two_stores_is_one_download(
    stores: tuple[StoreClient, StoreClient], hub: FakeHub
) -> None:
    hub.gate = threading.Event()
    calls = [store.import_calls(hub_request("bot:v1"))[0] for store in stores]
    await until(lambda: hub.requests["api"] == 2)
    hub.gate.set()
    first, second = await asyncio.gather(*map(finish, calls))
    assert first.digest == second.digest
    assert hub.requests["adapter_model.safetensors"] == 1
    await stores[1].import_(hub_request("bot:v2"))
    assert (await stores[0].resolve("bot:v2")).digest == first.digest


async def test_an_object_that_rotted_is_repaired_by_a_store_that_has_it(place: SharedPlace) -> None:
    async with place.store("one", **AT_ONCE) as one, place.store("two", **AT_ONCE) as two:
        await one.register()
        digest = (await one.push(adapter(), "bot")).manifest.weights_digest
        objects = place.objects()
        (name,) = objects.list_small("blobs")
        data = objects.read_small(name)
        assert data is not None
        for bit in (0, 8 * len(data) // 2, 8 * len(data) - 1):
            objects.write_small(name, flipped(data, bit))
            for path in place.local_blobs("two"):
                path.unlink()
            with suppress(errors.DigestMismatchError):
                assert digest_of(await two.read(digest)) == digest

            async def is_repaired() -> bool:
                return objects.read_small(name) == data

            await until_async(is_repaired)
            assert digest_of(await two.read(digest)) == digest


def flipped(data: bytes, bit: int) -> bytes:
    found = bytearray(data)
    found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


async def test_uploads_of_all_stores_are_collected(place: SharedPlace) -> None:
    async with place.store("one") as one, place.store("two") as two:
        await one.write(DATA, end=5000, finish=False)
        await bring(two, "some.bin", DATA[:9000])
        assert len(place.objects().list_small("uploads")) == 2
    async with place.store("one", **AT_ONCE, upload_ttl_s=0), place.store("two", **AT_ONCE, upload_ttl_s=0):
        await until(lambda: not place.objects().list_small("uploads"))


async def test_a_dry_run_of_any_store_says_what_the_one_that_removes_will_remove(place: SharedPlace) -> None:
    patient = {"unreferenced_grace_s": 0.0, "blob_lease_s": 0.0, "collect_every_s": 3600.0}
    async with place.store("one", **patient) as one, place.store("two", **patient) as two:
        await one.register()
        gone, kept = [(await store.push(adapter(seed=seed), f"bot-{seed}")) for seed, store in enumerate((one, two))]
        deletion = pb.DeleteVersionRequest(adapter="bot-0", digest=gone.digest, force=True)
        await two.call("DeleteVersion", deletion)
        plans = [await garbage(store, dry_run=True) for store in (one, two)]
        assert sorted(plan.objects_elsewhere for plan in plans) == [False, True]
        remover, other = (two, one) if plans[0].objects_elsewhere else (one, two)
        weights = gone.manifest.weights_digest
        for plan in plans:
            assert [r.digest for r in plan.due if r.kind is RemovalKind.OBJECT] == [weights]
        assert RemovalKind.OBJECT not in {r.kind for r in (await garbage(other)).removals}
        assert len(place.objects().list_small("blobs")) == 2
        again = await garbage(remover, dry_run=True)
        removed = await garbage(remover)
        assert said(removed.removals) == said(again.due)
        assert len(place.objects().list_small("blobs")) == 1
        assert digest_of(await one.read(kept.manifest.weights_digest)) == kept.manifest.weights_digest
        assert not (await garbage(remover, dry_run=True)).due


async def garbage(store: StoreClient, *, dry_run: bool = False) -> GarbageReport:
    messages = await store.stream("CollectGarbage", pb.CollectGarbageRequest(dry_run=dry_run))
    parts = [from_proto(GarbageReport, message) for message in messages]
    return GarbageReport(tuple(r for part in parts for r in part.removals), parts[0].objects_elsewhere)


def said(removals: tuple[Removal, ...]) -> list[tuple[str, ...]]:
    return sorted((r.kind, r.reason, r.name, r.digest) for r in removals)
