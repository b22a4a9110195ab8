"""AdapterStoreService: the catalog of adapters."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from hotslot.codec import to_proto
from hotslot.ids import parse_digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc
from hotslot.references import parse_name, parse_reference, parse_tag
from hotslot.rpc.min_revision import CATALOG_KEY
from hotslot.rpc.tenant import tenant_of
from shared.call_notes import call_notes
from store_service.catalog.policies import Policies
from store_service.catalog.pruning import VersionRetention
from store_service.catalog.records import AdapterFilter, VersionRecord
from store_service.catalog.shares import Shares
from store_service.catalog.watch import TenantWatches
from store_service.execution.call_queue import CallQueue
from store_service.execution.fair_queue import FairQueue
from store_service.execution.offload import Offload
from store_service.imports.importer import Importer
from store_service.placement.serving import ServingAdvice
from store_service.registry import Registry
from store_service.rpc import (
    base_model_answers,
    contract,
    policy_answers,
    requests,
    share_answers,
    version_answers,
)
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of
from store_service.rpc.process_answers import ProcessAnswers
from store_service.rpc.publications import Publications
from store_service.rpc.quota_answers import QuotaAnswers
from store_service.sources.sources import Sources


class AdapterStoreServicer(adapter_store_pb2_grpc.AdapterStoreServiceServicer):
    """Decodes, calls the registry or the catalog on a thread, encodes; what may be large is encoded there too.

    The earlier names of FleetService's methods are not here: `fleet_services` adds them.

    Look-ups never wait behind changes, nor do either behind blobs and admissions. `threads` are for the work that
    follows from calls that were taken: their answers, and watches.
    """

    def __init__(
        self,
        registry: Registry,
        importer: Importer,
        sources: Sources,
        serving: ServingAdvice,
        lookups: CallQueue,
        changes: CallQueue,
        threads: Offload,
        admission: FairQueue,
        watch: TenantWatches,
        policies: Policies,
        shares: Shares,
        publications: Publications,
        retention: VersionRetention,
        quotas: QuotaAnswers,
        process: ProcessAnswers,
        *,
        delete_grace_s: float,
    ) -> None:
        self._process = process
        self._registry = registry
        self._catalog = registry.catalog
        self._base_models = registry.base_models
        self._importer = importer
        self._sources = sources
        self._serving = serving
        self._lookups = lookups
        self._changes = changes
        self._threads = threads
        self._admission = admission
        self._watch = watch
        self._policies = policies
        self._shares = shares
        self._publications = publications
        self._retention = retention
        self._quotas = quotas
        self._delete_grace_s = delete_grace_s

    async def ImportAdapter(
        self, request: pb.ImportAdapterRequest, context: Any
    ) -> AsyncIterator[pb.ImportAdapterResponse]:
        """See the service's definition."""
        source = self._sources.of(tenant_of(context), requests.source_of(request))
        async with aclosing(self._importer.run(tenant_of(context), source, requests.imported(request))) as events:
            async for event in events:
                told = await self._serving.advised(event) if isinstance(event, VersionRecord) else event
                yield await self._threads(contract.import_message, told)

    async def ValidateAdapter(self, request: pb.ValidateAdapterRequest, context: Any) -> pb.ValidateAdapterResponse:
        """See the service's definition."""
        files = requests.files_of(request.files)
        tenant, left_s, base = tenant_of(context), context.time_remaining(), request.base_model
        verdict = await self._admission(tenant, left_s, self._registry.validate_uploaded, tenant, files, base)
        return await self._threads(contract.verdict_message, await self._serving.judged(verdict))

    async def CreateVersion(self, request: pb.CreateVersionRequest, context: Any) -> pb.CreateVersionResponse:
        """See the service's definition."""
        return await self._publications.create(tenant_of(context), request, context)

    async def PublishVersion(self, request_iterator: AsyncIterator[Any], context: Any) -> pb.PublishVersionResponse:
        """See the service's definition."""
        return await self._publications.publish(tenant_of(context), aiter(request_iterator), context)

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Any) -> pb.GetAdapterResponse:
        """See the service's definition."""
        name, tenant = parse_name(request.name), tenant_of(context)
        return await self._lookups(
            context,
            lambda: pb.GetAdapterResponse(adapter=contract.adapter_message(self._catalog.get_adapter(tenant, name))),
        )

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Any) -> pb.ListAdaptersResponse:
        """See the service's definition."""
        labels, prefix = dict(request.labels), request.name_prefix
        wanted = AdapterFilter(request.base_model, labels, prefix, show_deleted=request.show_deleted)
        limit, tenant = page_size_of(request.page_size), tenant_of(context)
        listing = ("adapters", sorted(labels.items()), request.base_model, prefix, request.show_deleted)
        name, position = decode_token(request.page_token, listing, ("", 0))

        def answer() -> pb.ListAdaptersResponse:
            found, revision = self._catalog.list_adapters(tenant, wanted, limit=limit, after=(str(name), int(position)))
            page, more = fitting((contract.adapter_message(record) for _, record in found), limit)
            token = encode_token(listing, (page[-1].name, found[len(page) - 1][0])) if more else ""
            return pb.ListAdaptersResponse(adapters=page, next_page_token=token, revision=revision)

        return await self._lookups(context, answer)

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> pb.ListVersionsResponse:
        """See the service's definition."""
        return await self._lookups(context, version_answers.page, self._catalog, request, tenant_of(context))

    async def ResolveAdapter(self, request: pb.ResolveAdapterRequest, context: Any) -> pb.ResolveAdapterResponse:
        """See the service's definition."""
        reference = parse_reference(request.reference)
        tenant = tenant_of(context)

        def answer() -> pb.ResolveAdapterResponse:
            found = self._registry.resolve(tenant, reference, request.base_model_digest)
            self._retention.note_resolved(tenant, reference, found)
            return contract.resolution_message(found)

        response = await self._lookups(context, answer)
        call_notes().digests = (response.version.digest,)
        return response

    async def SetTag(self, request: pb.SetTagRequest, context: Any) -> pb.SetTagResponse:
        """See the service's definition."""
        name, tag, digest = parse_name(request.adapter), parse_tag(request.tag), parse_digest(request.digest)
        tenant, set_tag = tenant_of(context), self._catalog.set_tag
        record = await self._changes(context, set_tag, tenant, name, tag, digest, etag=request.etag)
        return pb.SetTagResponse(tag=to_proto(pb.Tag, contract.tag_of(record)), revision=record.revision)

    async def DeleteTag(self, request: pb.DeleteTagRequest, context: Any) -> pb.DeleteTagResponse:
        """See the service's definition."""
        name, tag = parse_name(request.adapter), parse_tag(request.tag)
        tenant, delete = tenant_of(context), self._catalog.delete_tag
        return pb.DeleteTagResponse(revision=await self._changes(context, delete, tenant, name, tag, etag=request.etag))

    async def DeleteAdapter(self, request: pb.DeleteAdapterRequest, context: Any) -> pb.DeleteAdapterResponse:
        """See the service's definition."""
        tenant, name, delete = tenant_of(context), parse_name(request.name), self._catalog.delete_adapter
        grace_s = self._delete_grace_s
        record = await self._changes(context, delete, tenant, name, etag=request.etag, grace_s=grace_s)
        return pb.DeleteAdapterResponse(adapter=contract.adapter_message(record), revision=record.revision)

    async def UndeleteAdapter(self, request: pb.UndeleteAdapterRequest, context: Any) -> pb.UndeleteAdapterResponse:
        """See the service's definition."""
        name = parse_name(request.name)
        record = await self._changes(context, self._catalog.undelete_adapter, tenant_of(context), name)
        return pb.UndeleteAdapterResponse(adapter=contract.adapter_message(record), revision=record.revision)

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Any) -> pb.DeleteVersionResponse:
        """See the service's definition."""
        name, digest = parse_name(request.adapter), parse_digest(request.digest)
        tenant, delete = tenant_of(context), self._catalog.delete_version
        revision = await self._changes(context, delete, tenant, name, digest, force=request.force)
        return pb.DeleteVersionResponse(revision=revision)

    async def SetAdapterPolicy(self, request: pb.SetAdapterPolicyRequest, context: Any) -> pb.SetAdapterPolicyResponse:
        """See the service's definition."""
        return await self._changes(context, policy_answers.set_, self._policies, request, tenant_of(context))

    async def GetAdapterPolicy(self, request: pb.GetAdapterPolicyRequest, context: Any) -> pb.GetAdapterPolicyResponse:
        """See the service's definition."""
        record = await self._lookups(context, self._policies.get, tenant_of(context), parse_name(request.adapter))
        return pb.GetAdapterPolicyResponse(policy=to_proto(pb.AdapterPolicy, contract.policy_of(record)))

    async def ListAdapterPolicies(
        self, request: pb.ListAdapterPoliciesRequest, context: Any
    ) -> pb.ListAdapterPoliciesResponse:
        """See the service's definition."""
        return await self._lookups(context, policy_answers.page, self._policies, request, tenant_of(context))

    async def PruneVersions(self, request: pb.PruneVersionsRequest, context: Any) -> pb.PruneVersionsResponse:
        """See the service's definition."""
        return await self._changes(
            context, policy_answers.prune, self._retention, self._policies, request, tenant_of(context)
        )

    async def DeleteAdapterPolicy(
        self, request: pb.DeleteAdapterPolicyRequest, context: Any
    ) -> pb.DeleteAdapterPolicyResponse:
        """See the service's definition."""
        name = parse_name(request.adapter)
        tenant, delete = tenant_of(context), self._policies.delete
        revision = await self._changes(context, delete, tenant, name, etag=request.etag)
        return pb.DeleteAdapterPolicyResponse(revision=revision)

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Any) -> pb.GetQuotaResponse:
        """See the service's definition."""
        return await self._quotas.get(tenant_of(context), context)

    async def GetCaller(self, request: pb.GetCallerRequest, context: Any) -> pb.GetCallerResponse:
        """See the service's definition."""
        return to_proto(pb.GetCallerResponse, share_answers.known_caller(tenant_of(context)))

    async def ShareAdapter(self, request: pb.ShareAdapterRequest, context: Any) -> pb.ShareAdapterResponse:
        """See the service's definition."""
        return await self._changes(context, share_answers.share, self._shares, request, tenant_of(context))

    async def UnshareAdapter(self, request: pb.UnshareAdapterRequest, context: Any) -> pb.UnshareAdapterResponse:
        """See the service's definition."""
        return await self._changes(context, share_answers.unshare, self._shares, request, tenant_of(context))

    async def ListShares(self, request: pb.ListSharesRequest, context: Any) -> pb.ListSharesResponse:
        """See the service's definition."""
        return await self._lookups(context, share_answers.own_page, self._shares, request, tenant_of(context))

    async def ListSharedAdapters(
        self, request: pb.ListSharedAdaptersRequest, context: Any
    ) -> pb.ListSharedAdaptersResponse:
        """See the service's definition."""
        return await self._lookups(context, share_answers.others_page, self._shares, request, tenant_of(context))

    async def WatchAdapters(
        self, request: pb.WatchAdaptersRequest, context: Any
    ) -> AsyncIterator[pb.WatchAdaptersResponse]:
        """See the service's definition."""
        tenant = tenant_of(context)
        if request.HasField("from_revision"):
            revision = requests.revision_of(request.from_revision)
        else:
            revision = await self._threads(self._catalog.revision, tenant)
        # Headers say that the stream stands, from this revision on; events may not come for hours.
        await context.send_initial_metadata(((CATALOG_KEY, await self._threads(self._catalog.identity)),))
        watched = self._watch.events(tenant, revision, announcements=request.announcements)
        async with aclosing(watched) as events:
            async for event in events:
                yield to_proto(pb.WatchAdaptersResponse, contract.event_of(event))

    async def GetStoreStatus(self, request: pb.GetStoreStatusRequest, context: Any) -> pb.GetStoreStatusResponse:
        """See the service's definition."""
        return await self._process.status()

    async def CollectGarbage(
        self, request: pb.CollectGarbageRequest, context: Any
    ) -> AsyncIterator[pb.CollectGarbageResponse]:
        """See the service's definition."""
        for message in await self._process.garbage(dry_run=request.dry_run):
            yield message

    async def RegisterBaseModel(
        self, request: pb.RegisterBaseModelRequest, context: Any
    ) -> pb.RegisterBaseModelResponse:
        """See the service's definition."""
        return await self._changes(context, base_model_answers.register, self._base_models, request, tenant_of(context))

    async def DeleteBaseModel(self, request: pb.DeleteBaseModelRequest, context: Any) -> pb.DeleteBaseModelResponse:
        """See the service's definition."""
        return await self._changes(context, base_model_answers.delete, self._base_models, request, tenant_of(context))

    async def ListBaseModels(self, request: pb.ListBaseModelsRequest, context: Any) -> pb.ListBaseModelsResponse:
        """See the service's definition."""
        return await self._lookups(context, base_model_answers.page, self._base_models, request)

    async def FindBaseModels(self, request: pb.FindBaseModelsRequest, context: Any) -> pb.FindBaseModelsResponse:
        """See the service's definition."""
        tenant, left_s, choice = tenant_of(context), context.time_remaining(), self._registry.choice
        return await self._admission(tenant, left_s, base_model_answers.find, choice, request)

    async def AddBaseModelAlias(
        self, request: pb.AddBaseModelAliasRequest, context: Any
    ) -> pb.AddBaseModelAliasResponse:
        """See the service's definition."""
        return await self._changes(context, base_model_answers.alias, self._base_models, request, tenant_of(context))
