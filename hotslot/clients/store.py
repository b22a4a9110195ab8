"""The asyncio client of the adapter store."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from pathlib import Path

from hotslot.clients import importing, policies, publishing, sharing, store_status
from hotslot.clients.admission import Admission, OnProgress, ignore_progress
from hotslot.clients.blobs import BlobTransfer, RetryPolicy
from hotslot.clients.environment import FROM_ENVIRONMENT, FromEnvironment, options_of, store_of
from hotslot.clients.plain_forms import as_path
from hotslot.clients.publication_fields import PUSH_ARGUMENTS, naming, version_request
from hotslot.clients.pulling import pull_version
from hotslot.clients.rpc import Connection
from hotslot.clients.watching import watch_adapters
from hotslot.clients.written_revision import WrittenRevision
from hotslot.codec import build, from_proto, mismatch
from hotslot.contract.catalog import (
    Adapter,
    AdapterEvent,
    BaseModel,
    BaseModelMatch,
    PushResult,
    ResolvedAdapter,
    Tag,
    ValidationReport,
    Version,
)
from hotslot.errors import InvalidRequestError, StoreUnavailableError
from hotslot.formats.base_spec import BaseSpec
from hotslot.ids import Digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc as pb_grpc
from hotslot.rpc.channel import ChannelOptions

WATCH_TIMEOUT_S = 3600.0
PAGE_SIZE = 200


class StoreClient:
    """Calls one store. Belongs to the event loop of its first call; use it with `async with`, or close it.

    Every method raises the classes of `hotslot.errors` that the RPC of the same name documents, and
    StoreUnavailableError when the store cannot be reached.
    """

    def __init__(
        self,
        endpoint: str | FromEnvironment = FROM_ENVIRONMENT,
        options: ChannelOptions | None = None,
        retry: RetryPolicy | None = None,
        *,
        written: WrittenRevision | None = None,
    ) -> None:
        """`written` is shared by clients that are to be served by each other's writes."""
        self._written = written or WrittenRevision()
        store = store_of(endpoint)
        self._connection = Connection("store", store, options_of(options, store=store), StoreUnavailableError)
        self._write = partial(self._written.after, self._connection.unary)
        self._stub = pb_grpc.AdapterStoreServiceStub(self._connection.channel)
        self._retry = retry or RetryPolicy()
        self._blobs = BlobTransfer(self._connection, self._retry)
        self._admission = Admission(self._connection, self._stub, self._blobs, self._retry, self._written)

    @property
    def revision(self) -> int:
        """Revision of the tenant's catalog with every write of this client; 0 before the first.

        A generation that passes it on as `min_revision`, by whatever client, is served by what was written.
        """
        return self._written.value

    @property
    def endpoint(self) -> str:
        """host:port of the store."""
        return self._connection.endpoint

    async def __aenter__(self) -> "StoreClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that are under way raise ClientClosedError. Again is harmless."""
        await self._connection.close()

    async def push(
        self,
        folder: Path | str,
        reference: str,
        *,
        base_model: str = "",
        labels: Mapping[str, str] | None = None,
        tag_etag: str = "",
        annotations: Mapping[str, str | float] | None = None,
        tags: Sequence[str] = (),
        keep: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> PushResult:
        """Upload a PEFT folder and admit it as `name[:tag]`.

        Only what the store lacks is sent, and a broken stream goes on where it ended. `base_model` is a name or
        digest; empty means the one that the adapter's configuration names. With `tag_etag` the tag must be
        unchanged since. `annotations` are the version's own, `tags` further ones that move with the reference's, and
        `keep` sets how many versions the adapter keeps. `on_progress` may be called from another thread.

        Raises SourceNotFoundError when `folder` is not a folder, and InvalidAdapterError with every violation when
        the checkpoint is refused.
        """
        more = {"labels": labels, "tag_etag": tag_etag, "annotations": annotations, "tags": tags, "keep": keep}
        with naming(PUSH_ARGUMENTS):
            version = version_request(reference, base_model, **more)  # type: ignore[arg-type]
            return await self._admission.push(as_path(folder), version, on_progress or ignore_progress)

    async def validate(
        self, folder: Path | str, *, base_model: str = "", on_progress: OnProgress | None = None
    ) -> ValidationReport:
        """Run admission on a PEFT folder without publishing it; a checkpoint that is refused is no error here.

        Nor is a folder with files missing, empty or pickled: what is there is checked all the same.
        """
        return await self._admission.validate(as_path(folder), base_model, on_progress or ignore_progress)

    async def pull(self, reference: str, folder: Path | str) -> Version:
        """Write a version as a folder that PEFT loads to the same deltas; it appears only once it is whole.

        Raises InvalidRequestError where the folder is not empty, and InvalidAdapterError for what PEFT cannot express.
        """
        path, version = as_path(folder), (await self.resolve(reference)).version
        models = self.list_base_models(base_model=version.base_model_digest)
        return await pull_version(self._blobs, version, models, path)

    async def get(self, name: str) -> Adapter:
        """An adapter with its tags."""
        response = await self._connection.unary(self._stub.GetAdapter, build(pb.GetAdapterRequest, name=name))
        return from_proto(Adapter, response.adapter)

    async def resolve(self, reference: str, *, base_model_digest: str = "") -> ResolvedAdapter:
        """The version that a reference stands for now."""
        request = build(pb.ResolveAdapterRequest, reference=reference, base_model_digest=base_model_digest)
        return from_proto(ResolvedAdapter, await self._connection.unary(self._stub.ResolveAdapter, request))

    async def list_adapters(
        self,
        *,
        base_model: str = "",
        labels: Mapping[str, str] | None = None,
        name_prefix: str = "",
        show_deleted: bool = False,
    ) -> AsyncGenerator[Adapter, None]:
        """All adapters by name; pages are fetched as they are needed."""
        wanted = {"base_model": base_model, "name_prefix": name_prefix, "show_deleted": show_deleted}
        request = build(pb.ListAdaptersRequest, wanted, labels=labels or {}, page_size=PAGE_SIZE)
        async for page in self._connection.pages(self._stub.ListAdapters, request):
            for adapter in page.adapters:
                yield from_proto(Adapter, adapter)

    async def list_versions(self, name: str) -> AsyncGenerator[Version, None]:
        """An adapter's versions, newest first."""
        request = build(pb.ListVersionsRequest, adapter=name, page_size=PAGE_SIZE)
        async for page in self._connection.pages(self._stub.ListVersions, request):
            for version in page.versions:
                yield from_proto(Version, version)

    async def list_base_models(self, *, base_model: str = "") -> AsyncGenerator[BaseModel, None]:
        """Base models that the store knows: all, or those that are registered under a name or digest."""
        request = build(pb.ListBaseModelsRequest, page_size=PAGE_SIZE, base_model=base_model)
        async for page in self._connection.pages(self._stub.ListBaseModels, request):
            for message in page.base_models:
                found = from_proto(BaseModel, message)
                # A store of an earlier release lists all.
                if base_model in ("", found.digest, found.spec.name):
                    yield found

    async def register_base_model(self, spec: BaseSpec, *, move: bool = False) -> BaseModel:
        """Make a base model known under its name; with `move`, also where the name stood for another one."""
        if not isinstance(spec, BaseSpec):
            raise InvalidRequestError([mismatch("base_model", spec, "BaseSpec")])
        request = build(pb.RegisterBaseModelRequest, base_model=BaseModel(spec, spec.digest), move=move)
        response = await self._connection.unary(self._stub.RegisterBaseModel, request)
        return from_proto(BaseModel, response.base_model)

    async def delete_base_model(self, name: str) -> list[BaseModel]:
        """Forget a base model, by name or digest, that no adapter was admitted for; returns what went."""
        request = build(pb.DeleteBaseModelRequest, base_model=name)
        response = await self._connection.unary(self._stub.DeleteBaseModel, request)
        return [from_proto(BaseModel, model) for model in response.base_models]

    async def find_base_models(self, name: str, weights_header: bytes, weights_size_bytes: int) -> BaseModelMatch:
        """Base models that an adapter may be for: by what its config calls its base, and by its tensors."""
        request = build(
            pb.FindBaseModelsRequest,
            base_model=name,
            weights_header=weights_header,
            weights_size_bytes=weights_size_bytes,
        )
        return from_proto(BaseModelMatch, await self._connection.unary(self._stub.FindBaseModels, request))

    async def add_base_model_alias(self, base_model: str, alias: str) -> BaseModel:
        """Let a further name stand for a registered base model, which is given by name or digest."""
        request = build(pb.AddBaseModelAliasRequest, base_model=base_model, alias=alias)
        return from_proto(BaseModel, (await self._connection.unary(self._stub.AddBaseModelAlias, request)).base_model)

    async def set_tag(self, name: str, tag: str, digest: str, *, etag: str = "") -> Tag:
        """Point a tag at a version; with an etag, only if the tag is unchanged since."""
        request = build(pb.SetTagRequest, adapter=name, tag=tag, digest=digest, etag=etag)
        return from_proto(Tag, (await self._write(self._stub.SetTag, request)).tag)

    async def delete_tag(self, name: str, tag: str, *, etag: str = "") -> None:
        """Remove a tag; the version stays."""
        request = build(pb.DeleteTagRequest, adapter=name, tag=tag, etag=etag)
        await self._write(self._stub.DeleteTag, request)

    import_hub = importing.import_hub
    import_directory = importing.import_directory
    import_url = importing.import_url
    publish = publishing.publish
    set_policy = policies.set_policy
    get_policy = policies.get_policy
    list_policies = policies.list_policies
    delete_policy = policies.delete_policy
    prune = policies.prune
    quota = policies.quota
    share = sharing.share
    unshare = sharing.unshare
    list_shares = sharing.list_shares
    list_shared_adapters = sharing.list_shared_adapters
    caller = sharing.caller
    status = store_status.status
    collect_garbage = store_status.collect_garbage

    async def delete_adapter(self, name: str, *, etag: str = "") -> Adapter:
        """Remove an adapter with its tags and versions; it can be undeleted until its purge_time."""
        request = build(pb.DeleteAdapterRequest, name=name, etag=etag)
        return from_proto(Adapter, (await self._write(self._stub.DeleteAdapter, request)).adapter)

    async def undelete_adapter(self, name: str) -> Adapter:
        """Bring a deleted adapter back as it was."""
        request = build(pb.UndeleteAdapterRequest, name=name)
        return from_proto(Adapter, (await self._write(self._stub.UndeleteAdapter, request)).adapter)

    async def delete_version(self, name: str, digest: str, *, force: bool = False) -> None:
        """Remove one version; one that is tagged only with `force`, which removes its tags too."""
        request = build(pb.DeleteVersionRequest, adapter=name, digest=digest, force=force)
        await self._write(self._stub.DeleteVersion, request)

    def watch(self, from_revision: int | None = None) -> AsyncGenerator[AdapterEvent, None]:
        """Every change after a revision (None: from now on; 0: from the beginning), without gaps and without end.

        A broken stream goes on after the last revision that was seen. Raises RevisionCompactedError when that is
        too old, and StoreUnavailableError when the store stays away.
        """
        return watch_adapters(self._connection, self._stub, self._retry, from_revision, WATCH_TIMEOUT_S)

    def read_blob(self, digest: str) -> AsyncGenerator[memoryview, None]:
        """Stream a weights blob, as views of what arrived, resumed when a stream breaks.

        Use nothing of it before the iterator has ended: it raises DigestMismatchError after the last chunk when
        the bytes are not those of the digest.
        """
        return self._blobs.read(Digest(digest))

    async def download_blob(self, digest: str, path: Path | str) -> int:
        """Write a weights blob to a file, which appears only once it is verified; returns its size in bytes."""
        return await self._blobs.download(Digest(digest), as_path(path, "path"))
