"""One exchange with a store: every RPC that the store in memory answers, with answers in a form that stores share."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from hotslot.codec import to_proto
from hotslot.formats.base_spec import BaseSpec
from hotslot.ids import digest_of
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from hotslot.pb.hotslot.placement.v1 import placement_pb2, placement_pb2_grpc
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc, blob_pb2, blob_pb2_grpc
from hotslot.rpc.status import from_rpc_error
from store_service.catalog.records import BaseModelRecord
from store_service.rpc.contract import base_model_of
from tests.support.checkpoints import Draft, adapter

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NUMBER = re.compile(r"\b\d{4,}\b")
ELSEWHERE = digest_of(b"nothing has this content")
CONTENT = bytes(range(256)) * 40
OTHER_TENANT = "other"
UNLIKE = {"config_json", "modules"}
"""Fields with content that admission writes, or that a request brought."""
KEYS_ONLY = {"manifest"}
MOST_CHANGES = 1_000
"""More than the exchange makes: a larger revision is a fleet's, which counts by the clock."""


@dataclass
class Exchange:
    """Calls of one store, in order. Steps have names; `answers` has one for each."""

    channel: grpc.aio.Channel
    answers: dict[str, Any] = field(default_factory=dict)
    methods: set[str] = field(default_factory=set)
    """RPCs that were called."""
    _names: dict[str, str] = field(default_factory=dict)
    """Digests, etags and the like, by how they were met: stores choose their own."""

    async def call(self, step: str, method: str, request: Any, *, tenant: str = "default", count: int = 0) -> Any:
        """The answer, or None for an error; of a stream all messages, or as many as are wanted."""
        stubs = (
            fleet_pb2_grpc.FleetServiceStub(self.channel),
            adapter_store_pb2_grpc.AdapterStoreServiceStub(self.channel),
            blob_pb2_grpc.BlobServiceStub(self.channel),
            placement_pb2_grpc.PlacementServiceStub(self.channel),
        )
        stub = next(getattr(stub, method) for stub in stubs if hasattr(stub, method))
        assert step not in self.answers, step
        self.methods.add(method)
        answering = stub(request, metadata=(("hotslot-tenant", tenant),), timeout=60)
        try:
            if hasattr(answering, "__aiter__"):
                messages: list[Any] = []
                async for message in answering:
                    messages.append(message)
                    if len(messages) == count:
                        break
                self.answers[step] = self._stream_form(messages)
                return messages
            answer = await answering
        except grpc.aio.AioRpcError as exc:
            error = from_rpc_error(exc)
            text = NUMBER.sub(lambda match: self._names.setdefault(match[0], f"number {len(self._names)}"), str(error))
            self.answers[step] = type(error).__name__, self._named(text)
            return None
        self.answers[step] = self._form(MessageToDict(answer, preserving_proto_field_name=True))
        return answer

    def _stream_form(self, messages: list[Any]) -> Any:
        if messages and isinstance(messages[0], blob_pb2.ReadBlobResponse):
            # Chunks are as large as a store likes.
            first = messages[0]
            return "the blob", first.size_bytes - first.offset == sum(len(message.data) for message in messages)
        if messages and isinstance(messages[0], pb.ImportAdapterResponse):
            stages = [pb.ImportStage.Name(m.progress.stage) for m in messages if m.HasField("progress")]
            last = MessageToDict(messages[-1], preserving_proto_field_name=True)
            return bool(stages), "IMPORT_STAGE_FETCHING" in stages, self._form(last)
        return [self._form(MessageToDict(m, preserving_proto_field_name=True)) for m in messages]

    def _form(self, value: Any, key: str = "") -> Any:
        if key == "manifest_json":
            return "the manifest"
        if key in KEYS_ONLY:
            return sorted(value)
        if key in ("worker", "workers") and isinstance(value, dict):
            return value["worker_id"], value["endpoint"], value["state"]
        if isinstance(value, dict):
            return {k: self._form(v, k) for k, v in sorted(value.items()) if k not in UNLIKE}
        if isinstance(value, list):
            return [self._form(entry, key) for entry in value]
        if key in ("etag", "next_page_token") or (key == "revision" and int(value) > MOST_CHANGES):
            return self._names.setdefault(value, f"{key} {len(self._names)}")
        if key.endswith("_time") or key in ("ttl", "epoch"):
            return key
        return self._named(value) if isinstance(value, str) else value

    def _named(self, text: str) -> str:
        return DIGEST.sub(lambda match: self._names.setdefault(match[0], f"digest {len(self._names)}"), text)


StartWorker = Callable[[str], Awaitable[None]]
"""Has a worker of the base serve, with a version in its slots."""


async def speak(exchange: Exchange, spec: BaseSpec, start_worker: StartWorker) -> None:
    """The whole exchange."""
    await _of_blobs(exchange)
    await _of_base_models(exchange, spec)
    first, second = await _of_versions(exchange)
    await _of_tags(exchange, first, second)
    await _of_events(exchange)
    await _of_placement(exchange, second, start_worker)
    await _of_removals(exchange, first)
    await _of_imports(exchange)
    await exchange.call("its status", "GetStoreStatus", pb.GetStoreStatusRequest())


def chunks(data: bytes, *, offset: int = 0, digest: str = "", finish: bool = True) -> list[blob_pb2.WriteBlobRequest]:
    """An upload in two messages, of which the store learns the size in the first."""
    middle, digest = len(data) // 2, digest or digest_of(data)
    pieces = ((offset, data[offset:middle], False), (max(offset, middle), data[max(offset, middle) :], finish))
    return [
        blob_pb2.WriteBlobRequest(digest=digest, size_bytes=len(data), offset=at, data=piece, finish=last)
        for at, piece, last in pieces
        if piece
    ]


async def _messages(requests: list[blob_pb2.WriteBlobRequest]) -> AsyncIterator[blob_pb2.WriteBlobRequest]:
    for request in requests:
        yield request


async def _upload(exchange: Exchange, step: str, data: bytes, **how: Any) -> None:
    await exchange.call(step, "WriteBlob", _messages(chunks(data, **how)))


async def _of_blobs(exchange: Exchange) -> None:
    digest = digest_of(CONTENT)
    wanted = blob_pb2.FindMissingBlobsRequest(digests=[digest, ELSEWHERE])
    status = blob_pb2.GetWriteStatusRequest(digest=digest)
    await exchange.call("both are missing", "FindMissingBlobs", wanted)
    await exchange.call("nothing is committed", "GetWriteStatus", status)
    await exchange.call("a first half", "WriteBlob", _messages(chunks(CONTENT)[:1]))
    await exchange.call("a half is committed", "GetWriteStatus", status)
    await _upload(exchange, "a half again", CONTENT)
    await _upload(exchange, "the second half", CONTENT, offset=len(CONTENT) // 2)
    await exchange.call("all is committed", "GetWriteStatus", status)
    await exchange.call("one is missing", "FindMissingBlobs", wanted)
    await exchange.call("another tenant's is missing", "FindMissingBlobs", wanted, tenant=OTHER_TENANT)
    await _upload(exchange, "other bytes than the digest's", b"x" * 100, digest=ELSEWHERE)
    await exchange.call("an upload that nothing refers to", "ReadBlob", blob_pb2.ReadBlobRequest(digest=digest))


async def _of_base_models(exchange: Exchange, spec: BaseSpec) -> None:
    request = pb.RegisterBaseModelRequest(base_model=to_proto(pb.BaseModel, base_model_of(BaseModelRecord(spec, 0))))
    await exchange.call("a new base", "RegisterBaseModel", request)
    await exchange.call("a known base", "RegisterBaseModel", request)
    await exchange.call("a first epoch", "IssueEpoch", fleet_pb2.IssueEpochRequest())
    pinned = fleet_pb2.ListPinnedVersionsRequest(base_model_digest=spec.digest)
    await exchange.call("nothing is pinned", "ListPinnedVersions", pinned)
    await exchange.call("a second epoch", "IssueEpoch", fleet_pb2.IssueEpochRequest())


async def _upload_draft(exchange: Exchange, name: str, draft: Draft) -> list[pb.UploadedFile]:
    for file, data in draft.files().items():
        await _upload(exchange, f"{file} of {name}", data)
    return [pb.UploadedFile(path=file, digest=digest_of(data)) for file, data in draft.files().items()]


async def _of_versions(exchange: Exchange) -> tuple[str, str]:
    files = [await _upload_draft(exchange, name, adapter(seed=n)) for n, name in enumerate(("first", "second"))]
    lost = [pb.UploadedFile(path=file.path, digest=ELSEWHERE) for file in files[0]]
    await exchange.call("a dry run", "ValidateAdapter", pb.ValidateAdapterRequest(files=files[0]))
    await exchange.call(
        "files that were not uploaded", "CreateVersion", pb.CreateVersionRequest(reference="bot", files=lost)
    )
    labels = {"team": "a"}
    create = pb.CreateVersionRequest(reference="bot", files=files[0], labels=labels)
    first = (await exchange.call("a version", "CreateVersion", create)).version.digest
    await exchange.call("the same version", "CreateVersion", create)
    second = pb.CreateVersionRequest(reference="bot", files=files[1])
    second_digest = (await exchange.call("a second version", "CreateVersion", second)).version.digest
    await exchange.call("with a tag", "CreateVersion", pb.CreateVersionRequest(reference="other:v1", files=files[0]))
    await exchange.call("no name", "CreateVersion", pb.CreateVersionRequest(reference="No Name", files=files[0]))
    for name in ("bot", "nobody"):
        await exchange.call(f"the adapter {name}", "GetAdapter", pb.GetAdapterRequest(name=name))
        await exchange.call(f"the versions of {name}", "ListVersions", pb.ListVersionsRequest(adapter=name))
    await exchange.call("not another tenant's", "GetAdapter", pb.GetAdapterRequest(name="bot"), tenant=OTHER_TENANT)
    await exchange.call("all adapters", "ListAdapters", pb.ListAdaptersRequest())
    page = await exchange.call("a page", "ListAdapters", pb.ListAdaptersRequest(page_size=1))
    rest = pb.ListAdaptersRequest(page_size=1, page_token=page.next_page_token)
    await exchange.call("the last page", "ListAdapters", rest)
    await exchange.call("by prefix", "ListAdapters", pb.ListAdaptersRequest(name_prefix="oth"))
    return first, second_digest


async def _of_tags(exchange: Exchange, first: str, second: str) -> None:
    for reference in (
        "bot",
        "bot:latest",
        f"bot@{first}",
        "bot:v9",
        f"bot@{ELSEWHERE}",
        "nobody",
        "other:v1",
        "No Name",
    ):
        request = pb.ResolveAdapterRequest(reference=reference)
        await exchange.call(f"resolve {exchange._named(reference)}", "ResolveAdapter", request)
    other_base = pb.ResolveAdapterRequest(reference="bot", base_model_digest=ELSEWHERE)
    await exchange.call("resolve for another base", "ResolveAdapter", other_base)
    await exchange.call(
        "resolve as another", "ResolveAdapter", pb.ResolveAdapterRequest(reference="bot"), tenant=OTHER_TENANT
    )
    for tag, digest in (("prod", first), ("prod", second), ("prod", ELSEWHERE)):
        move = pb.SetTagRequest(adapter="bot", tag=tag, digest=digest)
        await exchange.call(f"{tag} is {exchange._named(digest)}", "SetTag", move)
    await exchange.call("a tag of nobody", "SetTag", pb.SetTagRequest(adapter="nobody", tag="prod", digest=first))
    for step in ("a tag ends", "a tag that has ended"):
        await exchange.call(step, "DeleteTag", pb.DeleteTagRequest(adapter="bot", tag="prod"))
    manifest = (await exchange.call("resolved", "ResolveAdapter", pb.ResolveAdapterRequest(reference="bot"))).version
    digest = manifest.manifest.weights_digest
    size_bytes = manifest.manifest.weights_size_bytes
    for step, offset in (
        ("whole", 0),
        ("the rest", size_bytes - 7),
        ("nothing is left", size_bytes),
        ("beyond", size_bytes + 1),
    ):
        messages = await exchange.call(step, "ReadBlob", blob_pb2.ReadBlobRequest(digest=digest, offset=offset))
        assert messages is None or offset or digest_of(b"".join(m.data for m in messages)) == digest
    await exchange.call("a blob of another", "ReadBlob", blob_pb2.ReadBlobRequest(digest=digest), tenant=OTHER_TENANT)
    await exchange.call("no blob", "ReadBlob", blob_pb2.ReadBlobRequest(digest=ELSEWHERE))


async def _of_events(exchange: Exchange) -> None:
    events = await exchange.call(
        "events from the beginning", "WatchAdapters", pb.WatchAdaptersRequest(from_revision=0), count=6
    )
    late = pb.WatchAdaptersRequest(from_revision=events[3].revision)
    await exchange.call("events from a revision on", "WatchAdapters", late, count=2)


async def _of_removals(exchange: Exchange, first: str) -> None:
    await exchange.call("v1 again", "SetTag", pb.SetTagRequest(adapter="bot", tag="v1", digest=first))
    for step, force in (("with a tag", False), ("by force", True), ("that is gone", True)):
        request = pb.DeleteVersionRequest(adapter="bot", digest=first, force=force)
        await exchange.call(f"remove a version {step}", "DeleteVersion", request)
    for step in ("an adapter ends", "an adapter that has ended"):
        await exchange.call(step, "DeleteAdapter", pb.DeleteAdapterRequest(name="bot"))
    await exchange.call("ended", "GetAdapter", pb.GetAdapterRequest(name="bot"))
    await exchange.call("not resolved", "ResolveAdapter", pb.ResolveAdapterRequest(reference="bot"))
    await exchange.call("without the ended", "ListAdapters", pb.ListAdaptersRequest())
    await exchange.call("with the ended", "ListAdapters", pb.ListAdaptersRequest(show_deleted=True))
    for step in ("an adapter is back", "an adapter that is back"):
        await exchange.call(step, "UndeleteAdapter", pb.UndeleteAdapterRequest(name="bot"))
    await exchange.call("back", "GetAdapter", pb.GetAdapterRequest(name="bot"))


async def _of_imports(exchange: Exchange) -> None:
    hub = pb.HubSource(repo_id="acme/bot")
    await exchange.call("an import", "ImportAdapter", pb.ImportAdapterRequest(reference="imported", hub=hub))
    await exchange.call("imported", "GetAdapter", pb.GetAdapterRequest(name="imported"))


async def _of_placement(exchange: Exchange, digest: str, start_worker: StartWorker) -> None:
    pick = placement_pb2.PickWorkersRequest(adapters=["bot"])
    listings = {
        "workers": ("ListWorkers", placement_pb2.ListWorkersRequest()),
        "placements": ("ListPlacements", placement_pb2.ListPlacementsRequest()),
    }
    await exchange.call("a pick without workers", "PickWorkers", pick)
    for name, (method, request) in listings.items():
        await exchange.call(f"no {name}", method, request)
    await start_worker(digest)
    await exchange.call("a pick", "PickWorkers", pick)
    for name, (method, request) in listings.items():
        while not getattr(await exchange.call(name, method, request), name):
            del exchange.answers[name]  # Pictures of the fleet are kept for a moment.
            await asyncio.sleep(0.02)
    await exchange.call("a pick for nobody", "PickWorkers", placement_pb2.PickWorkersRequest(adapters=["nobody"]))
