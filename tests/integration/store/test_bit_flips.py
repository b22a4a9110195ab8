"""A flipped bit on the disk, in object storage or on the wire ends in DATA_LOSS or a repair, never in a wrong byte."""

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from hotslot import StoreClient as PublicClient
from hotslot import errors
from hotslot.ids import DEFAULT_TENANT, Digest, digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_reference
from tests.support.checkpoints import adapter, base_spec
from tests.support.slow_proxy import slow_proxy
from tests.support.store import StoreClient, open_store
from worker_service.adapters.store_client import StoreTimeouts, StoreView

SPEC = base_spec(num_layers=2)
NUM_FLIPS = 12
DRAFT = adapter(("q_proj", "v_proj", "o_proj", "up_proj"), spec=SPEC, rank=256)


async def push(store: StoreClient) -> pb.Version:
    await store.register(SPEC)
    return await store.push(DRAFT, "bot")


def flip(path: Path, bit: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def only_file(folder: Path) -> Path:
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    return path


async def read(store: StoreClient, digest: str) -> bytes | None:
    """The bytes, or None for DATA_LOSS; anything else is a failure of the test."""
    try:
        return await store.read(digest)
    except errors.DigestMismatchError:
        return None


async def test_a_bit_of_a_local_blob(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'objects'}"
    async with open_store(tmp_path / "data", blob_url=url, verify_every_s=0) as store:
        digest = (await push(store)).manifest.weights_digest
        path, rng = only_file(tmp_path / "data" / "blobs"), random.Random(0)
        for _ in range(60):
            flip(path, rng.randrange(path.stat().st_size * 8))
            first, second = await read(store, digest), await read(store, digest)
            assert first is None or digest_of(first) == digest
            assert second is not None
            assert digest_of(second) == digest
    assert digest_of(path.read_bytes()) == digest


async def test_a_bit_of_a_local_blob_that_exists_nowhere_else(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", verify_every_s=0) as store:
        digest = (await push(store)).manifest.weights_digest
        path, rng = only_file(tmp_path / "data" / "blobs"), random.Random(1)
        for _ in range(20):
            flip(path, rng.randrange(path.stat().st_size * 8))
            assert await read(store, digest) is None
            assert not path.exists()
            assert (await push(store)).manifest.weights_digest == digest


async def test_a_bit_of_a_file_that_was_uploaded_and_not_admitted_yet(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        digest = (await push(store)).digest
        uploaded, rng = sorted((tmp_path / "data" / "uploads").rglob("*")), random.Random(3)
        paths = [path for path in uploaded if path.is_file()]
        assert len(paths) == 2
        for num_flipped in (1, 1, 2):
            for path in paths[:num_flipped]:
                flip(path, rng.randrange(path.stat().st_size * 8))
            files = [pb.UploadedFile(path=name, digest=digest_of(data)) for name, data in DRAFT.files().items()]
            with pytest.raises(errors.DigestMismatchError):
                await store.call("CreateVersion", pb.CreateVersionRequest(reference="other", files=files))
            with pytest.raises(errors.BlobNotFoundError):
                await store.call("ValidateAdapter", pb.ValidateAdapterRequest(files=files, base_model=SPEC.name))
            assert [path.exists() for path in paths] == [False] * num_flipped + [True] * (2 - num_flipped)
            assert (await store.push(DRAFT, "bot")).digest == digest, "the next push sends what was discarded"
            paths.reverse()


async def test_what_is_gone_hides_no_upload_that_rotted(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        await push(store)
        paths = [path for path in (tmp_path / "data" / "uploads").rglob("*") if path.is_file()]
        files = [pb.UploadedFile(path=name, digest=digest_of(data)) for name, data in DRAFT.files().items()]
        for gone, rotten in (paths, paths[::-1]):
            gone.unlink()
            flip(rotten, 5)
            with pytest.raises((errors.DigestMismatchError, errors.BlobNotFoundError)):
                await store.call("CreateVersion", pb.CreateVersionRequest(reference="other", files=files))
            assert not rotten.exists()
            await push(store)


async def test_a_bit_in_object_storage(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'objects'}"
    async with open_store(tmp_path / "data", blob_url=url) as store:
        digest = (await push(store)).manifest.weights_digest
        path, stored = only_file(tmp_path / "data" / "blobs"), only_file(tmp_path / "objects" / "blobs")
        right, rng = path.read_bytes(), random.Random(2)
        for _ in range(20):
            path.unlink()
            flip(stored, rng.randrange(len(right) * 8))
            assert await read(store, digest) is None
            assert not path.exists()
            stored.write_bytes(right)
            assert await read(store, digest) == right


class OneFlip:
    """Flips one bit of what one HTTP/2 connection carries as data: messages and their lengths.

    Frames' own headers are left alone: gRPC's core ends the whole process when it reads a GOAWAY of an unknown kind.
    """

    def __init__(self, bit: int) -> None:
        self._bytes_before, self._mask = bit // 8, 1 << bit % 8
        self._header = bytearray()
        self._payload_left = 0

    def __call__(self, data: bytes) -> bytes:
        changed, position = bytearray(data), 0
        while position < len(data):
            if not self._payload_left:
                taken = data[position : position + 9 - len(self._header)]
                self._header += taken
                position += len(taken)
                if len(self._header) == 9:
                    self._payload_left = int.from_bytes(self._header[:3])
                    self._is_data = self._header[3] == 0
                    self._header.clear()
                continue
            size = min(self._payload_left, len(data) - position)
            if self._is_data:
                if 0 <= self._bytes_before < size:
                    changed[position + self._bytes_before] ^= self._mask
                self._bytes_before -= size
            self._payload_left -= size
            position += size
        return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
async def test_a_bit_on_the_wire(tmp_path: Path, seed: int) -> None:
    """Of anything that the store answers a worker: its messages, their lengths, the weights in them."""
    rng = random.Random(seed)
    timeouts = StoreTimeouts(call_s=0.5, chunk_s=0.5, max_breaks=2, backoff_s=0.01)
    alone = [("grpc.use_local_subchannel_pool", 1)]
    num_errors = 0
    async with open_store(tmp_path / "data") as store:
        version = await push(store)
        digest, size_bytes = Digest(version.manifest.weights_digest), version.manifest.weights_size_bytes
        async with slow_proxy(int(store.endpoint.rpartition(":")[2])) as proxy:
            for _ in range(NUM_FLIPS):
                for change in (OneFlip(rng.randrange(8 * size_bytes)), bytes):
                    proxy.change = change
                    async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}", options=alone) as channel:
                        client = StoreView(channel, SPEC.digest, timeouts)
                        try:
                            found = await client.resolve(DEFAULT_TENANT, parse_reference("bot"))
                            assert found.digest == version.digest
                            assert digest_of(await client.read_blob(DEFAULT_TENANT, digest, size_bytes)) == digest
                        except errors.HotslotError:
                            assert change is not bytes
                            num_errors += 1
    assert num_errors == NUM_FLIPS


async def test_a_damaged_row_keeps_nobody_from_watching_what_happens_from_now_on(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        await push(store)
        with closing(sqlite3.connect(tmp_path / "data" / "catalog.sqlite3")) as database, database:
            database.execute("UPDATE tags SET name = 'lates2'")
        with pytest.raises(errors.CatalogDamagedError):
            await store.call("ListAdapters", pb.ListAdaptersRequest())
        async with PublicClient(store.endpoint) as watcher:
            watching = asyncio.ensure_future(anext(watcher.watch()))
            later = 0
            while not watching.done():
                # When the watch stands is not told; what happens after that is.
                later += 1
                await store.push(adapter(spec=SPEC, seed=later), f"later-{later}")
                await asyncio.wait([watching], timeout=0.2)
            assert (await watching).adapter.startswith("later-")
