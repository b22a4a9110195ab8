"""A real store in this process, with a client's stubs, for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from hotslot.codec import to_proto
from hotslot.errors import BadOffsetError, HotslotError, UploadBusyError
from hotslot.formats.base_spec import BaseSpec
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc, blob_pb2, blob_pb2_grpc
from hotslot.rpc.sending import LOST_STATUS
from hotslot.rpc.status import from_rpc_error
from store_service.app import running_store
from store_service.catalog.records import BaseModelRecord
from store_service.rpc.contract import base_model_of
from store_service.settings import StoreSettings
from tests.support.checkpoints import Draft, base_spec

CHUNK_BYTES = 64 * 1024
BUSY_PAUSE_S = 0.01
CALL_S = 120.0
"""Tells calls that hang from those that a busy machine takes long for."""


@dataclass
class StoreClient:
    """One tenant's stubs. Errors are raised as the classes that the store raised."""

    channel: grpc.aio.Channel
    tenant: str = "default"
    endpoint: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("hotslot-tenant", self.tenant),)

    @property
    def adapters(self) -> Any:
        return adapter_store_pb2_grpc.AdapterStoreServiceStub(self.channel)

    @property
    def blobs(self) -> Any:
        return blob_pb2_grpc.BlobServiceStub(self.channel)

    def of(self, tenant: str) -> "StoreClient":
        return StoreClient(self.channel, tenant, self.endpoint)

    async def call(self, method: str, request: Any) -> Any:
        stub = self.blobs if hasattr(self.blobs, method) else self.adapters
        try:
            return await getattr(stub, method)(request, metadata=self.metadata, timeout=CALL_S)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc

    async def stream(self, method: str, request: Any) -> list[Any]:
        stub = self.blobs if hasattr(self.blobs, method) else self.adapters
        try:
            return [message async for message in getattr(stub, method)(request, metadata=self.metadata, timeout=CALL_S)]
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc

    async def write(
        self, data: bytes, *, digest: str = "", offset: int = 0, end: int | None = None, finish: bool = True
    ) -> Any:
        """Upload `data[offset:end]` as a part of `data`."""

        digest = digest or digest_of(data)

        async def messages() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
            last = len(data) if end is None else end
            for position in range(offset, max(last, offset + 1), CHUNK_BYTES):
                chunk = data[position : min(position + CHUNK_BYTES, last)]
                yield blob_pb2.WriteBlobRequest(
                    digest=digest,
                    size_bytes=len(data),
                    offset=position,
                    data=chunk,
                    finish=finish and position + len(chunk) == last,
                )

        while True:
            try:
                return await self.blobs.WriteBlob(messages(), metadata=self.metadata, timeout=CALL_S)
            except grpc.aio.AioRpcError as exc:
                if exc.details() != LOST_STATUS:
                    raise from_rpc_error(exc) from exc

    async def read(self, digest: str, offset: int = 0, limit: int = 0) -> bytes:
        request = blob_pb2.ReadBlobRequest(digest=digest, offset=offset, limit=limit)
        chunks = await self.stream("ReadBlob", request)
        position = offset
        for chunk in chunks:
            assert chunk.offset == position
            position += len(chunk.data)
        return b"".join(chunk.data for chunk in chunks)

    async def register(self, spec: BaseSpec | None = None, *, move: bool = False) -> pb.BaseModel:
        message = to_proto(pb.BaseModel, base_model_of(BaseModelRecord(spec or base_spec(), 0)))
        response = await self.call("RegisterBaseModel", pb.RegisterBaseModelRequest(base_model=message, move=move))
        return response.base_model  # type: ignore[no-any-return]

    async def upload(self, draft: Draft) -> list[pb.UploadedFile]:
        files = []
        for name, data in draft.files().items():
            await self._write_after_others(data)
            files.append(pb.UploadedFile(path=name, digest=digest_of(data)))
        return files

    async def _write_after_others(self, data: bytes) -> None:
        # As clients do: two pushes at once may hold the same file.
        while True:
            try:
                await self.write(data)
            except UploadBusyError:
                await asyncio.sleep(BUSY_PAUSE_S)
            else:
                return

    async def upload_nonempty(self, draft: Draft) -> list[pb.UploadedFile]:
        """An empty file cannot be uploaded; a client leaves it away."""
        draft = draft.copy()
        draft.without |= {name for name, data in draft.files().items() if not data}
        return await self.upload(draft)

    async def push(self, draft: Draft, reference: str, **fields: Any) -> pb.Version:
        request = pb.CreateVersionRequest(reference=reference, files=await self.upload(draft), **fields)
        return (await self.call("CreateVersion", request)).version  # type: ignore[no-any-return]

    def import_calls(self, *requests: pb.ImportAdapterRequest) -> list[Any]:
        """Calls that have begun; their progress and versions are still to be read."""
        return [self.adapters.ImportAdapter(request, metadata=self.metadata) for request in requests]

    async def import_(self, request: pb.ImportAdapterRequest) -> pb.Version:
        return (await self.stream("ImportAdapter", request))[-1].version  # type: ignore[no-any-return]

    async def resolve(self, reference: str, base_model_digest: str = "") -> pb.Version:
        request = pb.ResolveAdapterRequest(reference=reference, base_model_digest=base_model_digest)
        return (await self.call("ResolveAdapter", request)).version  # type: ignore[no-any-return]

    async def names(self, **fields: Any) -> list[str]:
        response = await self.call("ListAdapters", pb.ListAdaptersRequest(**fields))
        return [adapter.name for adapter in response.adapters]


def hub_request(reference: str = "bot", base_model: str = "", **hub: str) -> pb.ImportAdapterRequest:
    """To import a repository of the fake hub."""
    source = pb.HubSource(**{"repo_id": "acme/bot", **hub})
    return pb.ImportAdapterRequest(reference=reference, hub=source, base_model=base_model)


async def bring(client: StoreClient, path: str, data: bytes) -> pb.UploadedFile:
    """Upload a file that others may be uploading as well, from wherever a broken upload ended."""
    digest = digest_of(data)
    while True:
        status = await client.call("GetWriteStatus", blob_pb2.GetWriteStatusRequest(digest=digest))
        if status.complete:
            return pb.UploadedFile(path=path, digest=digest)
        with suppress(UploadBusyError, BadOffsetError):
            await client.write(data, offset=status.committed_size)


async def reach(call: Any, stage: str, done_bytes: int = 0) -> pb.ImportProgress:
    """Read until an import is that far; what it said then."""
    async for response in call:
        progress = response.progress
        if progress.stage == pb.ImportStage.Value(f"IMPORT_STAGE_{stage}") and progress.done_bytes >= done_bytes:
            return progress  # type: ignore[no-any-return]
    raise AssertionError(f"the import ended before {stage} with {done_bytes} bytes")


async def finish(call: Any) -> pb.Version:
    """Read until an import is done."""
    return [response async for response in call][-1].version  # type: ignore[no-any-return]


@asynccontextmanager
async def open_store(folder: Path, **settings: Any) -> AsyncIterator[StoreClient]:
    """Start a store on a free port and dial it."""
    chosen = StoreSettings(**{"listen": "127.0.0.1:0", "data_dir": folder, "grace_s": 1.0, **settings})
    async with running_store(chosen) as server, dial(f"127.0.0.1:{server.port}") as client:
        yield client


@asynccontextmanager
async def dial(endpoint: str) -> AsyncIterator[StoreClient]:
    """A client of the store at an endpoint."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        yield StoreClient(channel, endpoint=endpoint)


async def error_of(call: Any) -> HotslotError:
    """The error that a call ends with."""
    try:
        await call
    except HotslotError as exc:
        return exc
    raise AssertionError("the call succeeded")
