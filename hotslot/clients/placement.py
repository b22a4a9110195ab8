"""The asyncio client of the placement service."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from hotslot.clients.environment import FROM_ENVIRONMENT, FromEnvironment, options_of, store_of
from hotslot.clients.rpc import Connection
from hotslot.clients.store import PAGE_SIZE, WATCH_TIMEOUT_S
from hotslot.codec import build, from_proto
from hotslot.contract.placement import Placement, PlacementEvent, Worker, WorkerPick
from hotslot.errors import StoreUnavailableError
from hotslot.pb.hotslot.placement.v1 import placement_pb2 as pb
from hotslot.pb.hotslot.placement.v1 import placement_pb2_grpc as pb_grpc
from hotslot.rpc.channel import ChannelOptions


class PlacementClient:
    """Asks which workers there are; the store's process answers. Belongs to the event loop of its first call."""

    def __init__(
        self, endpoint: str | FromEnvironment = FROM_ENVIRONMENT, options: ChannelOptions | None = None
    ) -> None:
        store = store_of(endpoint)
        options = options_of(options, store=store)
        self._connection = Connection("placement service", store, options, StoreUnavailableError)
        self._stub = pb_grpc.PlacementServiceStub(self._connection.channel)

    @property
    def endpoint(self) -> str:
        """host:port of the placement service."""
        return self._connection.endpoint

    async def __aenter__(self) -> "PlacementClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that are under way raise ClientClosedError. Again is harmless."""
        await self._connection.close()

    async def pick_workers(
        self,
        adapters: Sequence[str] = (),
        *,
        base_model: str = "",
        max_workers: int = 0,
        timeout_s: float = 5.0,
    ) -> WorkerPick:
        """The workers to call for a request that names these references, best first."""
        request = build(pb.PickWorkersRequest, adapters=adapters, base_model=base_model, max_workers=max_workers)
        return from_proto(WorkerPick, await self._connection.unary(self._stub.PickWorkers, request, timeout_s))

    async def list_workers(self, *, base_model: str = "") -> AsyncGenerator[Worker, None]:
        """The workers that hold a lease now."""
        request = build(pb.ListWorkersRequest, base_model=base_model, page_size=PAGE_SIZE)
        async for page in self._connection.pages(self._stub.ListWorkers, request):
            for worker in page.workers:
                yield from_proto(Worker, worker)

    async def list_placements(
        self, *, adapter_digest: str = "", worker_id: str = ""
    ) -> AsyncGenerator[Placement, None]:
        """Placements: each version with its workers and tiers."""
        request = build(
            pb.ListPlacementsRequest, adapter_digest=adapter_digest, worker_id=worker_id, page_size=PAGE_SIZE
        )
        async for page in self._connection.pages(self._stub.ListPlacements, request):
            for placement in page.placements:
                yield from_proto(Placement, placement)

    async def watch_placements(
        self, *, base_model: str = "", from_revision: int = 0
    ) -> AsyncGenerator[PlacementEvent, None]:
        """The placements that exist (when `from_revision` is 0), then every change; ends when the stream breaks."""
        request = build(pb.WatchPlacementsRequest, base_model=base_model, from_revision=from_revision)
        async with aclosing(self._connection.stream(self._stub.WatchPlacements, request, WATCH_TIMEOUT_S)) as messages:
            async for message in messages:
                yield from_proto(PlacementEvent, message)
