"""PlacementService and FleetService of the store in memory: workers and placements are those that a test names."""

import itertools
from typing import Any

from hotslot.errors import HotslotError, NoWorkersError
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from hotslot.pb.hotslot.placement.v1 import placement_pb2 as pb
from hotslot.pb.hotslot.placement.v1 import placement_pb2_grpc
from hotslot.references import parse_reference
from hotslot.rpc.tenant import tenant_of
from tests.support.memory_catalog import MemoryCatalog

REVISION = 2**52
"""A fleet's revisions count by the clock."""


class MemoryPlacement(placement_pb2_grpc.PlacementServiceServicer):
    """Picks all workers, in their order."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self.workers: list[pb.Worker] = []
        self.placements: list[pb.Placement] = []
        self.ttl_s = 60
        self.failure: HotslotError | None = None
        self.picks = 0
        self._catalog = catalog

    def start_worker(self, endpoint: str, *, worker_id: str = "", digests: tuple[str, ...] = (), **fields: Any) -> None:
        """Have a worker serve at an endpoint, with versions in its slots."""
        worker_id = worker_id or f"w-{len(self.workers) + 1}"
        state = pb.WORKER_STATE_READY
        self.workers.append(pb.Worker(worker_id=worker_id, endpoint=endpoint, state=state, **fields))
        self.placements += [pb.Placement(adapter_digest=d, worker_id=worker_id, tier=pb.TIER_SLOT) for d in digests]

    async def PickWorkers(self, request: pb.PickWorkersRequest, context: Any) -> Any:
        self.picks += 1
        if self.failure is not None:
            raise self.failure
        adapters = self._catalog.tenants[tenant_of(context)]
        versions = [adapters.resolve(parse_reference(text)) for text in request.adapters]
        if not self.workers:
            base = next((version.manifest.base_model_digest for version in versions), request.base_model)
            raise NoWorkersError(
                f"no worker of base model {base} takes requests now; start one, or wait for one to be ready"
            )
        tiers = {(it.worker_id, it.adapter_digest): it.tier for it in self.placements}
        digests = [version.digest for version in versions]
        response = pb.PickWorkersResponse(adapter_digests=digests, revision=REVISION)
        for worker in self.workers:
            tier = max(
                (tiers.get((worker.worker_id, digest), pb.TIER_NONE) for digest in digests), default=pb.TIER_NONE
            )
            response.candidates.append(pb.WorkerCandidate(worker=worker, tier=tier))
        response.ttl.seconds = self.ttl_s
        return response

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Any) -> Any:
        return pb.ListWorkersResponse(workers=self.workers)

    async def ListPlacements(self, request: pb.ListPlacementsRequest, context: Any) -> Any:
        return pb.ListPlacementsResponse(placements=self.placements)


class MemoryFleet(fleet_pb2_grpc.FleetServiceServicer):
    """Epochs; nothing is pinned."""

    def __init__(self) -> None:
        self._epochs = itertools.count(1)

    async def IssueEpoch(self, request: fleet_pb2.IssueEpochRequest, context: Any) -> Any:
        return fleet_pb2.IssueEpochResponse(epoch=next(self._epochs))

    async def ListPinnedVersions(self, request: fleet_pb2.ListPinnedVersionsRequest, context: Any) -> Any:
        return fleet_pb2.ListPinnedVersionsResponse()
