"""PlacementService: decode, one call, encode."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from hotslot.codec import to_proto
from hotslot.pb.hotslot.placement.v1 import placement_pb2 as pb
from hotslot.pb.hotslot.placement.v1 import placement_pb2_grpc
from hotslot.rpc.tenant import tenant_of
from store_service.placement.fleets import FleetCache
from store_service.placement.queries import PlacementQueries, WantedResolver
from store_service.placement.shared_changes import SharedChanges
from store_service.placement.unserved import UnservedPicks
from store_service.placement.watch import watch_placements
from store_service.rpc import fleet_contract
from store_service.rpc.paging import decode_token, encode_token, page_size_of
from store_service.rpc.requests import references_of, revision_of


class PlacementServicer(placement_pb2_grpc.PlacementServiceServicer):
    """Answers from Redis; `resolver` answers for the catalog."""

    def __init__(self, fleets: FleetCache, resolver: WantedResolver, unserved: UnservedPicks | None = None) -> None:
        """`unserved` hears of picks that find no worker."""
        self._fleets = fleets
        self._directory = fleets.directory
        self._changes = SharedChanges(fleets.directory)
        self._queries = PlacementQueries(fleets, resolver, unserved or UnservedPicks())
        self.readings = self._queries.readings
        """Numbers of the picks."""

    async def PickWorkers(self, request: pb.PickWorkersRequest, context: Any) -> pb.PickWorkersResponse:
        """Workers for a set of adapters, best first."""
        references = references_of(request.adapters)
        pick = await self._queries.pick(
            tenant_of(context), references, request.base_model, request.max_workers, caller=context
        )
        return to_proto(pb.PickWorkersResponse, fleet_contract.pick_of(pick))

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Any) -> pb.ListWorkersResponse:
        """Workers that hold a lease."""
        listing = ("workers", request.base_model)
        after = decode_token(request.page_token, listing, ("", ""))
        workers, position = await self._queries.list_workers(
            request.base_model, page_size_of(request.page_size), cast(tuple[str, str], after)
        )
        return pb.ListWorkersResponse(
            workers=[to_proto(pb.Worker, fleet_contract.worker_of(worker)) for worker in workers],
            next_page_token=encode_token(listing, position) if position else "",
        )

    async def ListPlacements(self, request: pb.ListPlacementsRequest, context: Any) -> pb.ListPlacementsResponse:
        """The calling tenant's versions on workers."""
        tenant = tenant_of(context)
        listing = ("placements", tenant, request.adapter_digest, request.worker_id)
        after = decode_token(request.page_token, listing, ("", "", ""))
        placements, position = await self._queries.list_placements(
            tenant,
            request.adapter_digest,
            request.worker_id,
            page_size_of(request.page_size),
            cast(tuple[str, str, str], after),
        )
        return pb.ListPlacementsResponse(
            placements=[to_proto(pb.Placement, fleet_contract.placement_of(each)) for each in placements],
            next_page_token=encode_token(listing, position) if position else "",
        )

    async def WatchPlacements(
        self, request: pb.WatchPlacementsRequest, context: Any
    ) -> AsyncIterator[pb.WatchPlacementsResponse]:
        """The calling tenant's placements, then every change."""
        events = watch_placements(
            self._directory,
            lambda: self._fleets.pools_named(request.base_model),
            tenant_of(context),
            revision_of(request.from_revision),
            changes=self._changes,
        )
        async with aclosing(events):
            async for event in events:
                yield to_proto(pb.WatchPlacementsResponse, fleet_contract.event_of(event))
