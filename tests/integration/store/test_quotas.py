"""Quotas of a real store, through its clients: refusals that lose nothing, deleting that frees, the command."""

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from hotslot import ChannelOptions
from hotslot.cli.app import run
from hotslot.cli.rendering import human_size
from hotslot.clients.store import StoreClient
from hotslot.contract.quotas import QuotaKind
from hotslot.errors import TenantQuotaError
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import open_store
from tests.support.waiting import until_async

pytestmark = pytest.mark.integration


def written(folder: Path, seed: int) -> Path:
    adapter(seed=seed).write(folder)
    return folder


async def used(client: StoreClient) -> dict[str, int | None]:
    return {usage.kind: usage.used for usage in (await client.quota()).usages}


async def test_a_push_that_is_refused_at_its_end_keeps_what_it_sent(tmp_path: Path) -> None:
    first, second = (written(tmp_path / str(seed), seed) for seed in (1, 2))
    async with (
        open_store(tmp_path / "store", quota_versions=1) as served,
        StoreClient(served.endpoint, ChannelOptions(max_attempts=1)) as client,
    ):
        await client.register_base_model(base_spec())
        pushed = await client.push(first, "bot")
        with pytest.raises(TenantQuotaError) as refused:
            await client.push(second, "bot")
        error = refused.value
        assert (error.subject, error.quota, error.limit, error.used) == ("default", "versions", 1, 1)
        assert error.retry_after_s is None
        await client.delete_version("bot", pushed.version.digest, force=True)
        again = await client.push(second, "bot")
        assert again.uploaded_bytes == 0  # all of it was there still
        assert (await used(client))["versions"] == 1


async def test_the_status_names_tenant_limit_and_use(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", 1)
    async with open_store(tmp_path / "store", quota_adapters=0) as served, StoreClient(served.endpoint) as client:
        await client.register_base_model(base_spec())
        with pytest.raises(TenantQuotaError):
            await client.push(folder, "bot")
        files = [pb.UploadedFile(path=file.name, digest=digest_of(file.read_bytes())) for file in folder.iterdir()]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await served.adapters.CreateVersion(pb.CreateVersionRequest(reference="bot", files=files))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(failed.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        quota = error_details_pb2.QuotaFailure()
        assert any(detail.Unpack(quota) for detail in status.details)
        (violation,) = quota.violations
        assert violation.subject == "default"
        assert "may have 0 adapters and has 0" in violation.description
        # Time does not help, so no time is named.
        assert not any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)


async def test_requests_of_a_minute_and_uploads_at_the_same_time_are_bounded(tmp_path: Path) -> None:
    quotas = tmp_path / "quotas.json"
    quotas.write_text(json.dumps({"tenants": {"flood": {"requests_per_minute": 5, "uploads": 1}}}))
    async with open_store(tmp_path / "store", quotas_file=quotas) as served:
        metadata = (("hotslot-tenant", "flood"),)

        async def names() -> Any:
            return await served.adapters.ListAdapters(pb.ListAdaptersRequest(), metadata=metadata)

        ended = asyncio.Event()

        async def slow() -> Any:
            yield blob_pb2.WriteBlobRequest(digest=digest_of(b"xy"), size_bytes=2, data=b"x")
            await ended.wait()

        upload = asyncio.ensure_future(served.blobs.WriteBlob(slow(), metadata=metadata))

        async def is_under_way() -> bool:
            quota = await served.adapters.GetQuota(pb.GetQuotaRequest(), metadata=metadata)
            return any(one.kind == pb.QUOTA_KIND_UPLOADS and one.used for one in quota.usages)

        await until_async(is_under_way)
        with pytest.raises(grpc.aio.AioRpcError, match="may have 1 uploads and has 1"):
            await served.blobs.WriteBlob(slow(), metadata=metadata)
        results = await asyncio.gather(*(names() for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(result, grpc.aio.AioRpcError) for result in results) == 7
        assert await served.adapters.ListAdapters(pb.ListAdaptersRequest()) is not None
        quota = await served.adapters.GetQuota(pb.GetQuotaRequest(), metadata=metadata)
        found = {usage.kind: usage for usage in quota.usages}
        assert found[pb.QUOTA_KIND_UPLOADS].used == 1
        assert found[pb.QUOTA_KIND_REQUESTS_PER_MINUTE].used == 5
        assert not found[pb.QUOTA_KIND_TOKENS_PER_MINUTE].HasField("limit")
        ended.set()
        assert (await upload).committed_size == 1


async def test_uploads_that_wait_are_bounded_by_the_bytes_of_their_tenant(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store", quota_bytes=1000) as served:
        assert (await served.write(b"a" * 600)).complete
        with pytest.raises(TenantQuotaError) as refused:
            await served.write(b"b" * 600)
        assert refused.value.retry_after_s == 600
        assert (await served.write(b"c" * 400)).complete
        # A whole one that nobody asked for in ten minutes gives way.
        (kept,) = [
            path for path in (tmp_path / "store" / "uploads" / "default").iterdir() if path.stat().st_size == 600
        ]
        os.utime(kept, (kept.stat().st_mtime - 700, kept.stat().st_mtime - 700))
        assert (await served.write(b"d" * 600)).complete
        assert not kept.exists()


async def test_the_command_shows_use_and_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_store(tmp_path / "store", quota_bytes=3 * 2**20, quota_adapters=10) as served:
        capsys.readouterr()
        assert await asyncio.to_thread(run, ["quota", "--store", served.endpoint]) == 0
        table = capsys.readouterr().out
        assert await asyncio.to_thread(run, ["quota", "--store", served.endpoint, "-o", "json"]) == 0
        printed = capsys.readouterr().out
    assert re.search(r"^adapters +0 +10$", table, re.MULTILINE)
    assert re.search(r"^requests per minute +- +-$", table, re.MULTILINE)
    assert human_size(3 * 2**20) in table
    document = json.loads(printed[printed.index("{\n") :])
    assert document["tenant"] == "default"
    assert {"kind": "adapters", "limit": 10, "used": 0} in document["usages"]
    assert {"kind": "versions", "limit": None, "used": 0} in document["usages"]
    assert [usage["kind"] for usage in document["usages"]] == [kind.value for kind in QuotaKind][1:]
