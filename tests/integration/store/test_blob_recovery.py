"""Blobs that are not on the store's disk, or rotten there, over real sockets: they come back whole or not at all."""

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hotslot import errors
from hotslot.ids import DEFAULT_TENANT, digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from store_service.admission import checks
from tests.support.checkpoints import Draft, adapter, base_spec
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.object_storage import BUCKET, s3_server
from tests.support.store import StoreClient, error_of, open_store
from tests.support.waiting import until, until_async

SPEC = base_spec(num_layers=2)
NOW_AND_THEN = {"collect_every_s": 0.05, "unreferenced_grace_s": 0.0, "blob_lease_s": 0.0}
Open = Callable[..., AbstractAsyncContextManager[StoreClient]]


def draft(seed: int) -> Draft:
    """A checkpoint whose blob has about 130 kB."""
    return adapter(("q_proj", "v_proj", "o_proj", "up_proj"), spec=SPEC, rank=256, seed=seed)


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with s3_server() as variables, pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        yield


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path / 'objects'}"
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        server.repositories["acme/bot"] = draft(1).files()
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Open:
    @asynccontextmanager
    async def start_on(**settings: Any) -> AsyncIterator[StoreClient]:
        async with open_store(tmp_path / "data", **settings) as client:
            await client.register(SPEC)
            yield client

    return start_on


def local_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "data" / "blobs").rglob("*") if path.is_file()]


def rot(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << (position % 8)
    path.chmod(0o644)
    path.write_bytes(data)


async def import_hub(store: StoreClient, **fields: Any) -> pb.Version:
    request = pb.ImportAdapterRequest(reference="bot", hub=pb.HubSource(repo_id="acme/bot"), **fields)
    return (await store.stream("ImportAdapter", request))[-1].version  # type: ignore[no-any-return]


async def read(store: StoreClient, version: pb.Version, offset: int = 0) -> None:
    digest = version.manifest.weights_digest
    whole = await store.read(digest)
    assert digest_of(whole) == digest
    assert await store.read(digest, offset) == whole[offset:]


async def evicted(folder: Path, version: pb.Version) -> None:
    name = version.manifest.weights_digest.removeprefix("sha256:")
    await until(lambda: name not in {path.name for path in local_files(folder)})


async def test_evicted_blobs_come_back_from_object_storage(start: Open, tmp_path: Path, url: str) -> None:
    async with start(blob_url=url, blob_cache_bytes=300_000, **NOW_AND_THEN) as store:
        versions = [await store.push(draft(seed), f"bot-{seed}") for seed in range(6)]
        assert sum(path.stat().st_size for path in local_files(tmp_path)) <= 300_000
        for version in [*versions, *versions]:
            await read(store, version, 50_000)
            assert sum(path.stat().st_size for path in local_files(tmp_path)) <= 300_000


async def test_a_disk_that_was_lost_fills_again(start: Open, tmp_path: Path, url: str) -> None:
    async with start(blob_url=url) as store:
        versions = [await store.push(draft(seed), f"bot-{seed}") for seed in range(2)]
    shutil.rmtree(tmp_path / "data" / "blobs")
    async with start(blob_url=url) as store:
        for version in versions:
            await read(store, version)
    assert len(local_files(tmp_path)) == 2


async def test_what_nobody_refers_to_leaves_object_storage_too(start: Open, tmp_path: Path, url: str) -> None:
    async with start(blob_url=url, delete_grace_s=0, **NOW_AND_THEN) as store:
        kept, gone = [await store.push(draft(seed), f"bot-{seed}") for seed in range(2)]
        await store.call("DeleteAdapter", pb.DeleteAdapterRequest(name="bot-1"))
        await evicted(tmp_path, gone)
    shutil.rmtree(tmp_path / "data" / "blobs")
    async with start(blob_url=url) as store:
        await read(store, kept)
        error = await error_of(store.read(gone.manifest.weights_digest))
        assert isinstance(error, errors.BlobNotFoundError)


async def test_many_readers_share_one_fetch(start: Open, tmp_path: Path, hub: FakeHub) -> None:
    async with start(hub_endpoint=hub.endpoint) as store:
        version = await import_hub(store)
        for path in local_files(tmp_path):
            path.unlink()
        hub.requests.clear()
        await asyncio.gather(*(read(store, version) for _ in range(20)))
        assert hub.requests["adapter_model.safetensors"] == 1


async def test_an_evicted_import_comes_back_from_its_commit(start: Open, tmp_path: Path, hub: FakeHub) -> None:
    async with start(hub_endpoint=hub.endpoint, blob_cache_bytes=150_000, **NOW_AND_THEN) as store:
        version = await import_hub(store)
        uploaded = await store.push(draft(2), "uploaded")
        await evicted(tmp_path, version)
        # The upload exists nowhere else, so there is no room to bring the import back.
        error = await error_of(store.read(version.manifest.weights_digest))
        assert isinstance(error, errors.QuotaExceededError)
        await read(store, uploaded)
    async with start(hub_endpoint=hub.endpoint) as store:
        await read(store, version, 70_001)


async def test_what_was_admitted_comes_back_though_it_would_be_refused_today(
    start: Open, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(hub_endpoint=hub.endpoint) as store:
        version = await import_hub(store)
        (path,) = local_files(tmp_path)
        path.unlink()
        found = checks._check_targets
        problem = errors.Violation.of("MODULE_MISSING", "model", "it", "more", "a rule that came later")
        monkeypatch.setattr(checks, "_check_targets", lambda *of: (problem, *found(*of)))
        unlike_all_before = draft(4)
        unlike_all_before.config["lora_alpha"] = 3  # what was planned before is not judged by rules again
        refused = await error_of(store.push(unlike_all_before, "new"))
        assert isinstance(refused, errors.InvalidAdapterError)
        await read(store, version)


@pytest.mark.parametrize(
    ("change", "error_class"),
    [
        ("files", errors.BlobLostError),
        ("bytes", errors.BlobLostError),
        ("gone", errors.BlobLostError),
        ("down", errors.SourceUnavailableError),
    ],
)
async def test_a_source_that_gives_something_else_is_data_loss_and_one_that_is_away_is_unavailable(
    start: Open, tmp_path: Path, hub: FakeHub, change: str, error_class: type[errors.HotslotError]
) -> None:
    async with start(hub_endpoint=hub.endpoint, hub_attempts=1) as store:
        version = await import_hub(store)
        (path,) = local_files(tmp_path)
        path.unlink()
        match change:
            case "files":
                hub.repositories["acme/bot"] = draft(3).files()
            case "bytes":
                hub.replace["adapter_model.safetensors"] = draft(3).files()["adapter_model.safetensors"]
            case "gone":
                hub.repositories.clear()
            case "down":
                hub.fail_with["api"] = [500] * 20
        error = await error_of(store.read(version.manifest.weights_digest))
        assert type(error) is error_class
        assert local_files(tmp_path) == []
        hub.repositories["acme/bot"] = draft(1).files()
        hub.replace.clear()
        hub.fail_with.clear()
        await read(store, version)


async def test_uploads_are_never_evicted_and_the_same_upload_again_needs_no_room(start: Open, tmp_path: Path) -> None:
    async with start(blob_cache_bytes=150_000, **NOW_AND_THEN) as store:
        version = await store.push(draft(0), "bot")
        error = await error_of(store.push(draft(1), "bot"))
        assert isinstance(error, errors.QuotaExceededError)
        assert error.subject == "blob_cache_bytes"
        assert "blob_url" in error.message
        assert (await store.push(draft(0), "bot:again")).digest == version.digest
        await read(store, version)
        assert (await store.resolve("bot")).digest == version.digest
    assert len(local_files(tmp_path)) == 1
    assert list((tmp_path / "data" / "stages").iterdir()) == []


async def test_a_pinned_adapter_stays(start: Open, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'objects'}"
    async with start(blob_url=url, blob_cache_bytes=270_000, **NOW_AND_THEN) as store:
        pinned = await store.push(draft(0), "pinned", labels={"hotslot.pinned": "true"})
        others = [await store.push(draft(seed), f"bot-{seed}") for seed in range(1, 5)]
        for version in others:
            await read(store, version)
        name = pinned.manifest.weights_digest.removeprefix("sha256:")
        assert name in {path.name for path in local_files(tmp_path)}


async def test_a_blob_that_was_just_resolved_stays(start: Open, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'objects'}"
    async with start(blob_url=url, blob_cache_bytes=150_000, blob_lease_s=60.0, collect_every_s=0.05) as store:
        await store.push(draft(0), "bot")
        await store.resolve("bot")
        error = await error_of(store.push(draft(1), "other"))
        assert isinstance(error, errors.QuotaExceededError)
        assert error.retry_after_s is not None


async def test_scrubbing_finds_rot_and_repairs_it(start: Open, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'objects'}"
    async with start(blob_url=url) as store:
        versions = [await store.push(draft(seed), f"bot-{seed}") for seed in range(3)]
    rotten = local_files(tmp_path)[1]
    rot(rotten, 1234)
    async with start(blob_url=url, scrub_every_s=0.01):
        await until(lambda: rotten.is_file() and digest_of(rotten.read_bytes()) == f"sha256:{rotten.name}")
    assert len(list((tmp_path / "data" / "quarantine").iterdir())) == 1
    async with start(blob_url=url) as store:
        for version in versions:
            await read(store, version)


async def test_rot_without_another_copy_is_data_loss_until_it_is_pushed_again(start: Open, tmp_path: Path) -> None:
    async with start(scrub_every_s=0.01) as store:
        version = await store.push(draft(0), "bot")
        rot(local_files(tmp_path)[0], 7)
        await until(lambda: local_files(tmp_path) == [])
        for _ in range(2):
            error = await error_of(store.read(version.manifest.weights_digest))
            assert isinstance(error, errors.BlobLostError)
        assert (await store.push(draft(0), "bot")).digest == version.digest
        await read(store, version)


async def test_a_stream_that_meets_rot_in_its_last_block_goes_on_with_the_right_bytes(
    start: Open, tmp_path: Path
) -> None:
    async with start(blob_url=f"file://{tmp_path / 'objects'}", verify_every_s=0) as store:
        version = await store.push(draft(0), "bot")
        (path,) = local_files(tmp_path)
        size_bytes = path.stat().st_size
        for offset in (0, 1, size_bytes - 1):
            rot(path, size_bytes - 1)
            data = await store.read(version.manifest.weights_digest, offset)
            assert data == path.read_bytes()[offset:]
        assert digest_of(path.read_bytes()) == version.manifest.weights_digest


async def test_a_stream_that_has_sent_rotten_bytes_ends_and_the_next_one_is_right(tmp_path: Path, start: Open) -> None:
    large = adapter(("q_proj", "v_proj", "o_proj", "up_proj"), spec=SPEC, rank=4096)
    async with start(blob_url=f"file://{tmp_path / 'objects'}", verify_every_s=0, max_rank=4096) as store:
        version = await store.push(large, "bot")
        (path,) = local_files(tmp_path)
        assert path.stat().st_size > 1_500_000
        rot(path, 5000)
        error = await error_of(store.read(version.manifest.weights_digest))
        assert type(error) is errors.DigestMismatchError
        await read(store, version)


async def test_a_file_of_another_size_is_repaired_before_anything_is_sent(start: Open, tmp_path: Path) -> None:
    async with start(blob_url=f"file://{tmp_path / 'objects'}") as store:
        version = await store.push(draft(0), "bot")
        (path,) = local_files(tmp_path)
        for data in (path.read_bytes()[:-1], path.read_bytes() + b"x", b""):
            path.chmod(0o644)
            path.write_bytes(data)
            await read(store, version)
            (path,) = local_files(tmp_path)


async def test_a_store_with_another_catalog_does_not_take_the_objects_for_garbage(start: Open, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'objects'}"
    async with start(blob_url=url) as store:
        await store.push(draft(0), "bot")
    with pytest.raises(errors.StoreUnavailableError, match="and there is no catalog; nothing was removed"):
        async with open_store(tmp_path / "other", blob_url=url):
            pass
    assert len([path for path in (tmp_path / "objects" / "blobs").rglob("*") if path.is_file()]) == 1


async def test_evictions_and_reads_at_random_never_give_a_wrong_byte(start: Open, tmp_path: Path) -> None:
    rng = random.Random(0)
    url = f"file://{tmp_path / 'objects'}"
    async with start(blob_url=url, blob_cache_bytes=400_000, verify_every_s=0, **NOW_AND_THEN) as store:
        versions = [await store.push(draft(seed), f"bot-{seed}") for seed in range(6)]

        async def reader(seed: int) -> None:
            choose = random.Random(seed)
            for _ in range(15):
                version = choose.choice(versions)
                request = blob_pb2.ReadBlobRequest(digest=version.manifest.weights_digest)

                async def came() -> bool:
                    try:
                        data = b"".join([chunk.data for chunk in await store.stream("ReadBlob", request)])  # noqa: B023
                    except (errors.QuotaExceededError, errors.DigestMismatchError):
                        return False  # all that lies there is being read, or it rotted twice meanwhile
                    assert digest_of(data) == request.digest  # noqa: B023
                    return True

                await until_async(came)

        async def rotter() -> None:
            for _ in range(10):
                files = local_files(tmp_path)
                if files:
                    try:
                        path = rng.choice(files)
                        path.chmod(0o644)
                        with path.open("r+b") as file:
                            file.seek(path.stat().st_size - 1)
                            file.write(b"?")
                    except FileNotFoundError:
                        pass  # evicted first
                await asyncio.sleep(0.01)

        await asyncio.gather(rotter(), *(reader(seed) for seed in range(4)))
    assert DEFAULT_TENANT in {path.parent.parent.name for path in local_files(tmp_path)}
