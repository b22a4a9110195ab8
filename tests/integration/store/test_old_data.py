"""Files that an earlier version wrote (tests/data) are served by this one, bit for bit."""

import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from hotslot.pb.hotslot.store.v1 import blob_pb2
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2 as code_pb
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2_grpc as code_grpc
from store_service.backup.__main__ import main as backup
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, open_store
from worker_service.adapters.disk_tier import DiskOptions, open_disk_tier

ARCHIVE = Path(__file__).parents[2] / "data" / "old_data.tar.gz"
UPLOAD = bytes(reversed(range(256))) * 16
PART = UPLOAD + b"more"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def expected_of(folder: Path, store: str) -> Any:
    return json.loads((folder / "expected.json").read_text())[store]


@pytest.fixture(params=["store", "store-with-objects"])
async def opened(request: pytest.FixtureRequest, old: Path) -> AsyncIterator[tuple[StoreClient, Any, Path]]:
    settings = {} if request.param == "store" else {"blob_url": f"file://{old / 'objects'}"}
    async with open_store(old / request.param, compiled_code_bytes=1 << 20, **settings) as client:
        yield client, expected_of(old, request.param), old / request.param


async def test_versions_resolve_and_their_blobs_are_read(opened: tuple[StoreClient, Any, Path]) -> None:
    client, expected, _ = opened
    for version in expected["versions"]:
        tenant = client.of(version["tenant"])
        pinned = f"{version['reference'].partition(':')[0]}@{version['digest']}"
        found = await tenant.resolve(pinned)
        assert found.digest == version["digest"]
        assert found.manifest.weights_digest == version["weights_digest"]
        data = await tenant.read(version["weights_digest"])
        assert (len(data), digest_of(data)) == (version["size_bytes"], version["weights_digest"])
        assert await tenant.read(version["weights_digest"], 100, 50) == data[100:150]
    assert (await client.resolve("bot:stable")).digest == expected["versions"][1]["digest"]


async def test_the_same_checkpoint_is_the_version_that_is_there(opened: tuple[StoreClient, Any, Path]) -> None:
    client, expected, folder = opened
    before = {path for path in (folder / "blobs").rglob("*") if path.is_file()}
    version = await client.push(adapter(seed=1), "bot:stable")
    assert version.digest == expected["versions"][1]["digest"]
    assert before == {path for path in (folder / "blobs").rglob("*") if path.is_file()}


async def test_uploads_are_there_and_broken_ones_go_on(opened: tuple[StoreClient, Any, Path]) -> None:
    client, expected, _ = opened
    missing = blob_pb2.FindMissingBlobsRequest(digests=[expected["upload"], expected["part"]["digest"]])
    assert list((await client.call("FindMissingBlobs", missing)).missing_digests) == [expected["part"]["digest"]]
    status = await client.call("GetWriteStatus", blob_pb2.GetWriteStatusRequest(digest=expected["part"]["digest"]))
    assert (status.committed_size, status.complete) == (expected["part"]["committed"], False)
    written = await client.write(PART, offset=status.committed_size)
    assert (written.committed_size, written.complete) == (expected["part"]["size_bytes"], True)


async def test_compiled_code_is_read(opened: tuple[StoreClient, Any, Path]) -> None:
    client, expected, _ = opened
    stub: Any = code_grpc.CompiledCodeServiceStub(client.channel)
    request = code_pb.ReadCompiledCodeRequest(key=expected["code"]["key"])
    data = b"".join([message.data async for message in stub.ReadCompiledCode(request, metadata=client.metadata)])
    assert digest_of(data) == expected["code"]["digest"]


async def test_what_waits_to_be_removed_waits_on_and_what_a_crash_left_goes(
    opened: tuple[StoreClient, Any, Path],
) -> None:
    _, expected, folder = opened
    waiting = expected["waiting"]
    hex_digits = waiting["digest"].removeprefix("sha256:")
    assert (folder / "blobs" / waiting["tenant"] / hex_digits[:2] / hex_digits).is_file()
    note = folder / "waiting.json" if folder.name == "store" else folder.parent / "objects" / "waiting"
    assert json.loads(note.read_bytes().partition(b"\n")[2])["blobs"][f"{waiting['tenant']} {waiting['digest']}"][1] > 1
    assert list((folder / "stages").iterdir()) == []


async def test_a_worker_serves_from_its_disk_without_fetching(old: Path) -> None:
    class NoSource:
        async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> bytes:
            raise AssertionError(f"{digest} was fetched")

    tier = open_disk_tier(DiskOptions(old / "worker-disk", 1 << 20), NoSource())
    assert tier is not None
    for version in expected_of(old, "store")["versions"]:
        assert tier.has(DEFAULT_TENANT, version["weights_digest"])
        data = await tier.read_blob(DEFAULT_TENANT, version["weights_digest"], version["size_bytes"])
        assert digest_of(bytes(data)) == version["weights_digest"]
    assert not list((old / "worker-disk").glob(".stage-*"))


async def test_a_backup_is_restored_and_served(old: Path) -> None:
    assert backup(["restore", str(old / "backup.tar"), "--data-dir", str(old / "restored")]) == 0
    async with open_store(old / "restored") as client:
        for version in expected_of(old, "store")["versions"]:
            data = await client.of(version["tenant"]).read(version["weights_digest"])
            assert digest_of(data) == version["weights_digest"]
