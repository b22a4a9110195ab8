"""BlobService over real sockets."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from hotslot import errors
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import blob_pb2, blob_pb2_grpc
from tests.support.checkpoints import Draft, adapter, base_spec
from tests.support.store import StoreClient, error_of, open_store
from tests.support.waiting import until_async

DATA = os.urandom(3_000_000)
DIGEST = digest_of(DATA)


def large_adapter() -> Draft:
    return adapter(("q_proj", "v_proj", "o_proj", "up_proj"), spec=base_spec(num_layers=2), rank=64)


async def committed(store: StoreClient) -> int:
    request = blob_pb2.GetWriteStatusRequest(digest=DIGEST)
    return (await store.call("GetWriteStatus", request)).committed_size  # type: ignore[no-any-return]


async def is_free(store: StoreClient) -> bool:
    """Whether no stream holds the upload: what a broken one received is written down shortly after it broke."""
    error = await error_of(store.write(DATA, offset=len(DATA), end=len(DATA), finish=False))
    return not isinstance(error, errors.UploadBusyError)


async def test_an_upload_is_complete_and_no_longer_missing(store: StoreClient) -> None:
    request = blob_pb2.FindMissingBlobsRequest(digests=[DIGEST])
    assert (await store.call("FindMissingBlobs", request)).missing_digests == [DIGEST]
    response = await store.write(DATA)
    assert (response.complete, response.committed_size) == (True, len(DATA))
    assert (await store.call("FindMissingBlobs", request)).missing_digests == []
    assert (await store.of("other").call("FindMissingBlobs", request)).missing_digests == [DIGEST]


async def test_writing_again_succeeds_at_once(store: StoreClient) -> None:
    await store.write(DATA)
    assert (await store.write(DATA)).complete


async def test_an_upload_that_ends_early_is_continued(store: StoreClient) -> None:
    response = await store.write(DATA, end=1_234_567, finish=False)
    assert (response.complete, response.committed_size) == (False, 1_234_567)
    assert await committed(store) == 1_234_567
    assert (await store.write(DATA, offset=1_234_567)).complete


async def test_an_upload_cut_again_and_again_arrives(store: StoreClient) -> None:
    rng = random.Random(0)
    for _ in range(20):
        offset = await committed(store)
        stop = min(len(DATA) - 1, offset + rng.randrange(1, len(DATA) // 15))
        call = store.blobs.WriteBlob(metadata=store.metadata)
        await call.write(
            blob_pb2.WriteBlobRequest(digest=DIGEST, size_bytes=len(DATA), offset=offset, data=DATA[offset:stop])
        )
        call.cancel()
        await until_async(partial(is_free, store))
    assert (await store.write(DATA, offset=await committed(store))).complete


async def test_a_read_resumes_at_any_offset(store: StoreClient) -> None:
    version = await store.push(large_adapter(), "bot")
    digest, size = version.manifest.weights_digest, version.manifest.weights_size_bytes
    whole = await store.read(digest)
    assert len(whole) == size
    for offset, limit in ((0, 1), (7, 100), (size - 1, 0), (size, 0), (1000, size * 2)):
        expected = whole[offset : offset + limit] if limit else whole[offset:]
        assert await store.read(digest, offset, limit) == expected


# Another store would bring it back from object storage.
@pytest.mark.parametrize("store", ["one store"], indirect=True)
@pytest.mark.parametrize("offset", [0, 5000])
async def test_rot_on_the_disk_ends_in_data_loss_before_the_last_block(
    store: StoreClient, tmp_path: Path, offset: int
) -> None:
    version = await store.push(large_adapter(), "bot")
    (path,) = (path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    error = await error_of(store.read(version.manifest.weights_digest, offset))
    assert isinstance(error, errors.DigestMismatchError)
    await store.push(large_adapter(), "bot")
    assert len(await store.read(version.manifest.weights_digest)) == len(data)


@pytest.mark.parametrize(
    ("fields", "error_class"),
    [
        ({"offset": 1}, errors.BadOffsetError),
        ({"digest": "sha256:xyz"}, errors.InvalidRequestError),
        ({"digest": digest_of(b"something else")}, errors.DigestMismatchError),
        ({"end": 10}, errors.BadOffsetError),
    ],
)
async def test_a_wrong_upload_is_refused(
    store: StoreClient, fields: dict[str, object], error_class: type[Exception]
) -> None:
    assert type(await error_of(store.write(DATA, **fields))) is error_class  # type: ignore[arg-type]
    assert (await store.write(DATA, offset=await committed(store))).complete


async def test_a_bad_offset_names_the_right_one(store: StoreClient) -> None:
    await store.write(DATA, end=100, finish=False)
    error = await error_of(store.write(DATA, offset=50))
    assert isinstance(error, errors.BadOffsetError)
    assert (error.found, error.expected) == (50, 100)


async def test_more_bytes_than_announced_are_refused(store: StoreClient) -> None:
    async def messages() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        yield blob_pb2.WriteBlobRequest(digest=DIGEST, size_bytes=10, data=DATA[:11], finish=True)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await store.blobs.WriteBlob(messages())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_adapter_bytes=1000) as store:
        assert isinstance(await error_of(store.write(DATA)), errors.QuotaExceededError)


async def test_a_second_writer_is_told_to_wait(store: StoreClient) -> None:
    first = store.blobs.WriteBlob(metadata=store.metadata)
    await first.write(blob_pb2.WriteBlobRequest(digest=DIGEST, size_bytes=len(DATA), data=DATA[:10]))

    async def is_busy() -> bool:
        return not await is_free(store)

    await until_async(is_busy)
    first.cancel()


async def test_uploaded_files_cannot_be_read(store: StoreClient) -> None:
    await store.write(DATA)
    assert isinstance(await error_of(store.read(DIGEST)), errors.BlobNotFoundError)


@pytest.mark.parametrize(("offset", "limit"), [(-1, 0), (0, -1)])
async def test_a_negative_range_is_refused(store: StoreClient, offset: int, limit: int) -> None:
    assert isinstance(await error_of(store.read(DIGEST, offset, limit)), errors.InvalidRequestError)


async def test_an_offset_beyond_the_end_is_refused(store: StoreClient) -> None:
    version = await store.push(adapter(), "bot")
    error = await error_of(store.read(version.manifest.weights_digest, 10_000_000))
    assert isinstance(error, errors.BadOffsetError)


async def test_too_many_readers_are_told_to_come_back(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_read_streams=2) as store:
        # More bytes than flow control holds, so that a reader who stops makes the store wait.
        wide = BaseModule("model.layers.0.mlp.wide_proj", ModuleKind.LINEAR, 4096, 4096)
        spec = BaseSpec("acme/wide", "llama", "f", (wide,))
        await store.register(spec)
        draft = adapter(("wide_proj",), spec=spec, rank=256)
        digest = (await store.push(draft, "bot")).manifest.weights_digest
        request = blob_pb2.ReadBlobRequest(digest=digest)
        # A window that grew with the measured speed could take in the whole blob.
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
        async with grpc.aio.insecure_channel(store.endpoint, options=narrow) as channel:
            stub = blob_pb2_grpc.BlobServiceStub(channel)
            slow = [stub.ReadBlob(request, metadata=store.metadata) for _ in range(2)]
            for call in slow:
                await call.read()
            error = await error_of(store.read(digest))
            for call in slow:
                call.cancel()
        assert isinstance(error, errors.QuotaExceededError)
        assert error.retry_after_s is not None

        async def works() -> bool:
            try:
                return bool(await store.read(digest))
            except errors.QuotaExceededError:
                return False

        await until_async(works)


async def test_many_readers_at_once_all_get_the_right_bytes(store: StoreClient) -> None:
    version = await store.push(large_adapter(), "bot")
    results = await asyncio.gather(*(store.read(version.manifest.weights_digest) for _ in range(20)))
    assert {digest_of(data) for data in results} == {version.manifest.weights_digest}
