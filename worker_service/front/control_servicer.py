"""AdapterControlService on the wire: decode, one call, encode."""

from collections.abc import Sequence

from hotslot.codec import from_proto, to_proto
from hotslot.contract.control import WorkerAdapters
from hotslot.contract.generation import AdapterSelection
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2_grpc as pb_grpc
from hotslot.references import parse_reference
from hotslot.rpc.min_revision import min_revision_of
from hotslot.rpc.tenant import tenant_of
from worker_service.adapters.policy import Selection
from worker_service.front.deadline import timeout_of
from worker_service.front.inference_servicer import Context
from worker_service.front.validation import check_mix
from worker_service.front.worker import ServingWorker


class AdapterControlServicer(pb_grpc.AdapterControlServiceServicer):
    """Servicer of AdapterControlService, which operators call."""

    def __init__(self, worker: ServingWorker) -> None:
        self._worker = worker

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.LoadAdapterResponse:
        """Bring what a reference stands for now into slots, and serve it from now on."""
        reference = parse_reference(request.reference)
        with self._worker.admitted() as parts:
            result = await parts.control.load(
                tenant_of(context),
                reference,
                host_only=request.host_only,
                min_revision=_min_revision(request, context),
            )
        return to_proto(pb.LoadAdapterResponse, result)

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Context) -> pb.UnloadAdapterResponse:
        """Remove an adapter once no request uses it."""
        reference = parse_reference(request.reference)
        digest = await self._worker.parts.control.unload(tenant_of(context), reference, timeout_of(context))
        return pb.UnloadAdapterResponse(digest=digest)

    async def PinAdapter(self, request: pb.PinAdapterRequest, context: Context) -> pb.PinAdapterResponse:
        """Load an adapter and keep it in its slots."""
        reference = parse_reference(request.reference)
        with self._worker.admitted() as parts:
            held = await parts.control.pin(tenant_of(context), reference, _min_revision(request, context))
        return pb.PinAdapterResponse(adapter=to_proto(pb.LoadedAdapter, held))

    async def UnpinAdapter(self, request: pb.UnpinAdapterRequest, context: Context) -> pb.UnpinAdapterResponse:
        """Let an adapter be evicted again."""
        held = await self._worker.parts.control.unpin(tenant_of(context), parse_reference(request.reference))
        return pb.UnpinAdapterResponse(adapter=to_proto(pb.LoadedAdapter, held))

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        """List the calling tenant's adapters in every tier."""
        tenant, parts = tenant_of(context), self._worker.parts
        adapters = WorkerAdapters(
            adapters=tuple(await parts.control.list(tenant)),
            default_adapters=_named(parts.policy.defaults(tenant)),
            adapters_enabled=parts.policy.is_enabled(tenant),
        )
        return to_proto(pb.ListAdaptersResponse, adapters)

    async def SetDefaultAdapters(
        self, request: pb.SetDefaultAdaptersRequest, context: Context
    ) -> pb.SetDefaultAdaptersResponse:
        """Set what the calling tenant's requests get that name no adapters."""
        with self._worker.admitted() as parts:
            adapters = [from_proto(AdapterSelection, adapter) for adapter in request.adapters]
            selections = check_mix(adapters, parts.info.num_slots)
            await parts.control.set_defaults(tenant_of(context), selections, _min_revision(request, context))
        named = [to_proto(pb.DefaultAdapter, adapter) for adapter in _named(selections)]
        return pb.SetDefaultAdaptersResponse(adapters=named)

    async def EnableAdapters(self, request: pb.EnableAdaptersRequest, context: Context) -> pb.EnableAdaptersResponse:
        """Apply the calling tenant's adapters again."""
        self._worker.parts.policy.enable(tenant_of(context))
        return pb.EnableAdaptersResponse()

    async def DisableAdapters(self, request: pb.DisableAdaptersRequest, context: Context) -> pb.DisableAdaptersResponse:
        """Serve the calling tenant with the base alone."""
        self._worker.parts.policy.disable(tenant_of(context))
        return pb.DisableAdaptersResponse()

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> pb.DrainWorkerResponse:
        """Take no new requests; answer when the running ones have ended."""
        await self._worker.drain(timeout_of(context))
        return pb.DrainWorkerResponse()

    async def UndrainWorker(self, request: pb.UndrainWorkerRequest, context: Context) -> pb.UndrainWorkerResponse:
        """Take requests again."""
        self._worker.undrain()
        return pb.UndrainWorkerResponse()

    async def GetWorkerStatus(self, request: pb.GetWorkerStatusRequest, context: Context) -> pb.GetWorkerStatusResponse:
        """Say how the worker is, at any time."""
        return to_proto(pb.GetWorkerStatusResponse, await self._worker.status())


def _min_revision(
    request: pb.LoadAdapterRequest | pb.PinAdapterRequest | pb.SetDefaultAdaptersRequest, context: Context
) -> int:
    return min_revision_of(request.min_revision, context.invocation_metadata() or ())


def _named(selections: Sequence[Selection]) -> tuple[AdapterSelection, ...]:
    """A mix with its references written out."""
    return tuple(AdapterSelection(str(selection.reference), selection.weight) for selection in selections)
