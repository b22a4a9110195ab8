"""Clients that meet: at one upload, at one content, and with the collection of what nobody refers to."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from hotslot import errors
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, bring, open_store
from tests.support.store_process import StoreForks
from tests.support.waiting import until_async

DATA = os.urandom(2_000_000)
NUM_ROUNDS = 12


async def test_writers_of_one_blob_all_succeed(store: StoreClient, tmp_path: Path) -> None:
    files = await asyncio.gather(*(bring(store, "some.bin", DATA) for _ in range(8)))
    assert {file.digest for file in files} == {digest_of(DATA)}
    (path,) = (path for path in (tmp_path / "data" / "uploads").rglob("*") if path.is_file())
    assert path.read_bytes() == DATA


async def test_an_upload_goes_on_where_the_store_was_killed(tmp_path: Path, forks: StoreForks) -> None:
    status = blob_pb2.GetWriteStatusRequest(digest=digest_of(DATA))
    for end in (300_000, 1_000_001):
        async with forks.store(tmp_path) as store, store.client() as client:
            offset = (await client.call("GetWriteStatus", status)).committed_size
            await client.write(DATA, offset=offset, end=end, finish=False)
            await store.kill()
    async with forks.store(tmp_path) as store, store.client() as client:
        assert (await client.call("GetWriteStatus", status)).committed_size == 1_000_001
        await bring(client, "some.bin", DATA)
        assert (await client.call("GetWriteStatus", status)).complete


async def test_what_is_acknowledged_stays_readable_while_others_delete_the_same_content(tmp_path: Path) -> None:
    async with open_store(tmp_path, collect_every_s=0.001, unreferenced_grace_s=0) as store:
        await store.register()
        files = await store.upload(adapter())

        async def come_and_go(name: str) -> None:
            for _ in range(NUM_ROUNDS):
                request = pb.CreateVersionRequest(reference=name, files=files)
                version = (await store.call("CreateVersion", request)).version
                weights = await store.read(version.manifest.weights_digest)
                assert digest_of(weights) == version.manifest.weights_digest
                deletion = pb.DeleteVersionRequest(adapter=name, digest=version.digest, force=True)
                await store.call("DeleteVersion", deletion)

        await asyncio.gather(*(come_and_go(f"bot-{i}") for i in range(4)))

        async def is_collected() -> bool:
            return not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]

        await until_async(is_collected)


async def test_one_version_made_and_deleted_at_once_is_whole_or_absent(tmp_path: Path) -> None:
    async with open_store(tmp_path, collect_every_s=0.001, unreferenced_grace_s=0) as store:
        await store.register()
        files = await store.upload(adapter())
        request = pb.CreateVersionRequest(reference="bot", files=files)
        digest = (await store.call("CreateVersion", request)).version.digest
        deletion = pb.DeleteVersionRequest(adapter="bot", digest=digest, force=True)

        async def create() -> None:
            for _ in range(NUM_ROUNDS):
                await store.call("CreateVersion", request)

        async def delete() -> None:
            for _ in range(NUM_ROUNDS):
                with suppress(errors.VersionNotFoundError):
                    await store.call("DeleteVersion", deletion)

        await asyncio.gather(create(), create(), delete(), delete())
        with suppress(errors.VersionNotFoundError):
            await store.call("DeleteVersion", deletion)
        version = (await store.call("CreateVersion", request)).version
        assert (await store.resolve("bot")).digest == version.digest == digest
        assert digest_of(await store.read(version.manifest.weights_digest)) == version.manifest.weights_digest
