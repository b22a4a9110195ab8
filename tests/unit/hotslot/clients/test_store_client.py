"""The store's client against a store in memory on real sockets."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpc.aio._call import StreamUnaryCall

from hotslot import ChannelOptions, StoreClient
from hotslot.contract.catalog import AdapterEventKind, TransferProgress, TransferStage
from hotslot.errors import (
    AdapterNotFoundError,
    DigestMismatchError,
    InvalidAdapterError,
    InvalidReferenceError,
    QuotaExceededError,
    SourceUnavailableError,
    StoreUnavailableError,
    Violation,
)
from hotslot.ids import DEFAULT_TENANT, TagName, TenantId, digest_of
from tests.support.memory_adapters import MemoryAdapters
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until
from tests.unit.hotslot.conftest import FAST_RETRIES, NO_CHANNEL_RETRIES, serving

WEIGHTS = "adapter_model.safetensors"
DATA = random.Random(1).randbytes(400_000)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_push_uploads_both_files_and_creates_the_version(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    heard: list[TransferProgress] = []
    result = await store.push(
        adapter_folder, "acme/pirate:v1", base_model="org/base", labels={"a": "b"}, on_progress=heard.append
    )
    (request,) = fake_store.catalog.calls.create
    assert (request.reference, request.base_model, dict(request.labels)) == ("acme/pirate:v1", "org/base", {"a": "b"})
    assert [f.path for f in request.files] == ["adapter_config.json", WEIGHTS]
    assert fake_store.blobs.uploads[DEFAULT_TENANT][request.files[1].digest] == (adapter_folder / WEIGHTS).read_bytes()
    assert result.created
    assert result.uploaded_bytes == result.total_bytes > 1_500_000
    assert [stage for stage in TransferStage if any(p.stage is stage for p in heard)] == [
        TransferStage.HASHING,
        TransferStage.UPLOADING,
        TransferStage.PUBLISHING,
    ]
    uploading = [p for p in heard if p.stage is TransferStage.UPLOADING]
    assert uploading[-1].done_bytes == uploading[-1].total_bytes == result.total_bytes


async def test_a_second_push_sends_no_bytes(store: StoreClient, adapter_folder: Path) -> None:
    await store.push(adapter_folder, "pirate")
    assert (await store.push(adapter_folder, "pirate")).uploaded_bytes == 0


async def test_a_broken_upload_goes_on_where_the_store_has_it(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotslot.clients.blobs.CHUNK_BYTES", 64 * 1024)
    # The first stream is the configuration's, and long over by then.
    fake_store.blobs.break_writes_after.extend([1_000_000, 600_000, 300_000])
    await store.push(adapter_folder, "pirate")
    assert digest_of((adapter_folder / WEIGHTS).read_bytes()) in fake_store.blobs.uploads[DEFAULT_TENANT]
    offsets = fake_store.blobs.write_offsets[1:]
    assert offsets[0] == 0
    assert len(offsets) == 3
    assert offsets == sorted(set(offsets)), "every stream begins where the one before was committed"


async def test_an_upload_that_gets_nowhere_ends_with_the_stores_error(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    fake_store.blobs.break_writes_after.extend([0] * 50)
    with pytest.raises(StoreUnavailableError, match="the stream broke"):
        await store.push(adapter_folder, "pirate")
    assert len(fake_store.blobs.write_offsets) == FAST_RETRIES.max_stalls + 1


async def test_a_refusal_in_the_middle_of_an_upload_is_reported_as_the_store_put_it(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    fake_store.blobs.quota_bytes = 600_000
    with pytest.raises(QuotaExceededError, match="quota"):
        await store.push(adapter_folder, "pirate")


async def test_a_refusal_that_grpc_hears_of_after_a_write_has_failed_is_reported_as_the_store_put_it(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_store.blobs.quota_bytes = 600_000
    send = StreamUnaryCall.write

    async def lost(call: Any, request: Any) -> None:
        """What grpc.aio does when the core has no more room for a message: a status of its own, until the server's."""
        if request.offset:
            call._cython_call.set_internal_error("the batch failed")
            await call._raise_for_status()
        await send(call, request)

    monkeypatch.setattr(StreamUnaryCall, "write", lost)
    with pytest.raises(QuotaExceededError, match="quota"):
        await store.push(adapter_folder, "pirate")


async def test_a_file_that_changes_while_it_is_pushed_is_an_error(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    def spoil(progress: TransferProgress) -> None:
        if progress.stage is TransferStage.HASHING and progress.done_bytes == progress.total_bytes:
            (adapter_folder / WEIGHTS).write_bytes(bytes(1_500_000))

    with pytest.raises(DigestMismatchError):
        await store.push(adapter_folder, "pirate", on_progress=spoil)
    assert not fake_store.catalog.calls.create


async def test_what_rots_between_upload_and_admission_is_sent_once_more(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    def discard() -> None:
        fake_store.blobs.uploads[DEFAULT_TENANT].clear()
        raise DigestMismatchError("upload", "a", "b")

    fake_store.catalog.before_creating.append(discard)
    pushed = await store.push(adapter_folder, "pirate")
    assert digest_of((adapter_folder / WEIGHTS).read_bytes()) in fake_store.blobs.uploads[DEFAULT_TENANT]
    assert (pushed.uploaded_bytes, len(fake_store.catalog.calls.create)) == (2 * pushed.total_bytes, 2)
    fake_store.catalog.before_creating.extend([discard, discard])
    with pytest.raises(DigestMismatchError):
        await store.push(adapter_folder, "pirate")
    assert len(fake_store.catalog.calls.create) == 4


async def test_a_refusal_carries_every_violation_however_many_there_are(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    many = tuple(
        Violation("SHAPE_MISMATCH", f"tensor.{i}", "[1, 2]", "[3, 4]", f"tensor.{i}: {'x' * 100}") for i in range(200)
    )
    fake_store.catalog.refuse = InvalidAdapterError(many)
    fake_store.catalog.violations = many
    with pytest.raises(InvalidAdapterError) as raised:
        await store.push(adapter_folder, "pirate")
    assert raised.value.violations == many


async def test_a_malformed_reference_fails_before_anything_is_sent(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    with pytest.raises(InvalidReferenceError):
        await store.push(adapter_folder, "Not A Name")
    assert not fake_store.blobs.write_offsets


async def test_validate_reports_violations_without_raising(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    fake_store.catalog.violations = (Violation("NON_FINITE", "t", "NaN", "finite", "t has NaN"),)
    report = await store.validate(adapter_folder)
    assert not report.valid
    assert report.violations == fake_store.catalog.violations


async def test_a_folder_that_is_no_adapters_is_told_without_sending_its_weights(
    store: StoreClient, fake_store: MemoryStore, tmp_path: Path
) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(DATA)
    report = await store.validate(tmp_path)
    assert [violation.code for violation in report.violations] == ["MISSING_FILE"]
    assert not fake_store.blobs.write_offsets


async def test_what_is_missing_is_told_although_the_rest_cannot_be_sent(
    store: StoreClient, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    (adapter_folder / "adapter_config.json").unlink()
    fake_store.blobs.quota_bytes = 600_000
    report = await store.validate(adapter_folder)
    assert [violation.subject for violation in report.violations] == ["adapter_config.json"]


async def test_a_listing_fetches_its_pages_as_they_are_needed(store: StoreClient, fake_store: MemoryStore) -> None:
    names = [adapter.name async for adapter in store.list_adapters()]
    assert names == [f"adapter-{i}" for i in range(5)]
    assert fake_store.catalog.calls.pages == ["", "2", "4"]


async def test_a_blob_is_read_whole_over_broken_streams(store: StoreClient, fake_store: MemoryStore) -> None:
    fake_store.blobs.publish(DEFAULT_TENANT, DATA)
    fake_store.blobs.break_reads_after.extend([100_000, 150_000])
    assert b"".join([chunk async for chunk in store.read_blob(digest_of(DATA))]) == DATA
    assert fake_store.blobs.read_offsets[0] == 0
    assert len(set(fake_store.blobs.read_offsets)) == 3


async def test_bytes_that_are_not_those_of_the_digest_are_an_error_and_leave_no_file(
    store: StoreClient, fake_store: MemoryStore, tmp_path: Path
) -> None:
    wanted = digest_of(DATA)
    fake_store.blobs.publish(DEFAULT_TENANT, DATA)
    fake_store.blobs.published[DEFAULT_TENANT][wanted].data = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(DigestMismatchError) as raised:
        await store.download_blob(wanted, tmp_path / "weights")
    assert raised.value.expected == wanted
    assert names_in(tmp_path) == []


async def test_a_downloaded_blob_appears_whole(store: StoreClient, fake_store: MemoryStore, tmp_path: Path) -> None:
    fake_store.blobs.publish(DEFAULT_TENANT, DATA)
    assert await store.download_blob(digest_of(DATA), tmp_path / "weights") == len(DATA)
    assert names_in(tmp_path) == ["weights"]


async def test_downloads_to_one_file_at_the_same_time_leave_one_of_them_whole(
    store: StoreClient, fake_store: MemoryStore, tmp_path: Path
) -> None:
    blobs = [DATA, DATA[::-1]]
    for data in blobs:
        fake_store.blobs.publish(DEFAULT_TENANT, data)
    wanted = [digest_of(data) for data in blobs] * 3
    sizes = await asyncio.gather(*(store.download_blob(digest, tmp_path / "weights") for digest in wanted))
    assert sizes == [len(DATA)] * 6
    assert (tmp_path / "weights").read_bytes() in blobs
    assert names_in(tmp_path) == ["weights"]


def adapters_at(store: MemoryStore, revision: int) -> MemoryAdapters:
    """The default tenant's, with nothing but tags that move from a revision on."""
    adapters = store.catalog.tenants[DEFAULT_TENANT]
    adapters.revision = revision
    adapters.events.clear()
    return adapters


def move_tag(adapters: MemoryAdapters) -> None:
    """One change more."""
    tag = TagName(f"t{adapters.revision}")
    adapters.set_tag("adapter-0", tag, next(iter(adapters.get("adapter-0").versions)))


async def test_a_watch_goes_on_after_the_last_revision_it_saw(store: StoreClient, fake_store: MemoryStore) -> None:
    adapters = adapters_at(fake_store, 4)
    for _ in range(3):
        move_tag(adapters)
    fake_store.catalog.break_watches_after.extend([2, 0])
    seen = []
    async for item in store.watch(4):
        seen.append((item.revision, item.kind))
        if item.revision == 7:
            break
    assert seen == [(r, AdapterEventKind.TAG_MOVED) for r in (5, 6, 7)]
    assert fake_store.catalog.calls.watch_from == [4, 6, 6]


@pytest.mark.parametrize("revision", [0, 12])
async def test_a_watch_from_now_on_that_breaks_before_its_first_event_misses_none(
    store: StoreClient, fake_store: MemoryStore, revision: int
) -> None:
    adapters = adapters_at(fake_store, revision)
    fake_store.catalog.break_watches_after.append(0)
    watching = asyncio.ensure_future(anext(store.watch()))
    await until(lambda: len(fake_store.catalog.calls.watch_from) == 2)
    move_tag(adapters)
    assert (await watching).revision == revision + 1
    assert fake_store.catalog.calls.watch_from == [revision, revision]


async def test_a_watch_from_now_on_begins_once_the_store_is_back(store: StoreClient, fake_store: MemoryStore) -> None:
    away = StoreUnavailableError("away")
    adapters = adapters_at(fake_store, 12)
    fake_store.catalog.list_failures.extend([away] * FAST_RETRIES.max_stalls)
    watching = asyncio.ensure_future(anext(store.watch()))
    await until(lambda: bool(fake_store.catalog.calls.watch_from))
    move_tag(adapters)
    assert (await watching).revision == 13
    fake_store.catalog.list_failures.extend([away] * (FAST_RETRIES.max_stalls + 1))
    with pytest.raises(StoreUnavailableError, match="away"):
        await anext(store.watch())
    assert fake_store.catalog.calls.watch_from == [12]


async def test_a_quiet_catalog_is_watched_for_ever(
    store: StoreClient, fake_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotslot.clients.store.WATCH_TIMEOUT_S", 0.02)
    adapters = adapters_at(fake_store, 4)
    watching = asyncio.ensure_future(anext(store.watch(4)))
    await until(lambda: len(fake_store.catalog.calls.watch_from) > FAST_RETRIES.max_stalls + 3)
    monkeypatch.setattr("hotslot.clients.store.WATCH_TIMEOUT_S", 10.0)
    move_tag(adapters)
    assert (await asyncio.wait_for(watching, 60)).revision == 5


async def test_an_import_re_attaches_when_its_stream_breaks(store: StoreClient, fake_store: MemoryStore) -> None:
    fake_store.catalog.break_imports = 2
    heard: list[TransferProgress] = []
    version = await store.import_hub("org/lora", "pirate", on_progress=heard.append)
    assert version.adapter == "pirate"
    assert len(fake_store.catalog.calls.imports) == 3
    assert heard[0] == TransferProgress(TransferStage.FETCHING, 10, 20)


async def test_an_import_that_gets_no_further_is_given_up(store: StoreClient, fake_store: MemoryStore) -> None:
    fake_store.catalog.break_imports = 1000
    with pytest.raises(StoreUnavailableError, match="the stream broke"):
        await asyncio.wait_for(store.import_hub("org/lora", "pirate"), 60)
    assert len(fake_store.catalog.calls.imports) == FAST_RETRIES.max_stalls + 1


async def test_an_import_is_followed_over_a_path_that_cuts_quiet_streams(
    store_endpoint: str, fake_store: MemoryStore
) -> None:
    retry = replace(FAST_RETRIES, max_delay_s=0.01)
    fake_store.catalog.break_imports = 2 * FAST_RETRIES.max_stalls
    fake_store.catalog.imports_stand_s = 5 * retry.max_delay_s
    async with StoreClient(store_endpoint, NO_CHANNEL_RETRIES, retry) as client:
        assert (await client.import_hub("org/lora", "pirate")).adapter == "pirate"


async def test_a_source_that_does_not_answer_is_told_at_once(store: StoreClient, fake_store: MemoryStore) -> None:
    fake_store.catalog.break_imports = 1000
    fake_store.catalog.import_failure = SourceUnavailableError("the hub is away", retry_after_s=5.0)
    with pytest.raises(SourceUnavailableError, match="the hub is away") as raised:
        await asyncio.wait_for(store.import_hub("org/lora", "pirate"), 60)
    assert raised.value.retry_after_s == 5.0
    assert len(fake_store.catalog.calls.imports) == 1


async def test_a_manifest_that_is_not_its_digest_is_refused(fake_store: MemoryStore) -> None:
    answer = fake_store.catalog.GetAdapter

    async def damage(request: Any, context: Any) -> Any:
        response = await answer(request, context)
        response.adapter.latest_version.manifest_json += b" "
        return response

    fake_store.catalog.GetAdapter = damage  # type: ignore[method-assign]
    async with serving(fake_store) as endpoint, StoreClient(endpoint, NO_CHANNEL_RETRIES, FAST_RETRIES) as store:
        with pytest.raises(DigestMismatchError, match="manifest"):
            await store.get("adapter-0")


async def test_errors_are_the_stores_own_classes(store: StoreClient) -> None:
    with pytest.raises(AdapterNotFoundError, match="adapter 'nobody' not found") as raised:
        await store.get("nobody")
    assert raised.value.resource == "nobody"


async def test_a_store_that_is_not_there_is_named(unused_tcp_port: int) -> None:
    async with StoreClient(f"127.0.0.1:{unused_tcp_port}", NO_CHANNEL_RETRIES) as client:
        with pytest.raises(StoreUnavailableError, match=f"the store at 127.0.0.1:{unused_tcp_port} cannot be reached"):
            await client.get("pirate")


async def test_a_name_that_nobody_knows_is_told_in_whole_words() -> None:
    async with StoreClient("no-such-host.invalid:7400", NO_CHANNEL_RETRIES) as client:
        with pytest.raises(StoreUnavailableError, match=r"cannot be reached \([^][()]+\)$"):
            await client.get("pirate")


async def test_the_tenant_travels_with_every_call(
    store_endpoint: str, fake_store: MemoryStore, adapter_folder: Path
) -> None:
    async with StoreClient(store_endpoint, ChannelOptions(tenant=TenantId("acme"))) as client:
        await client.push(adapter_folder, "pirate")
    assert fake_store.catalog.calls.tenants == ["acme"]


async def test_closing_a_listing_early_is_no_error(store: StoreClient) -> None:
    async for _ in store.list_adapters():
        break
    await asyncio.sleep(0)
