"""Answers of AdapterStoreService about the process: its status, and its garbage in messages of a bounded size."""

from hotslot.batches import batches
from hotslot.codec import to_proto
from hotslot.contract.garbage import GarbageReport
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.execution.offload import Offload
from store_service.garbage_collection import GarbageCollection
from store_service.health import StoreHealth

MAX_REMOVALS = 1_000
"""Removals of one message."""


class ProcessAnswers:
    """Runs collections on threads; one takes as long as everything that the store has."""

    def __init__(self, health: StoreHealth, garbage: GarbageCollection, threads: Offload) -> None:
        self._health = health
        self._garbage = garbage
        self._threads = threads

    async def status(self) -> pb.GetStoreStatusResponse:
        """State of each part."""
        return to_proto(pb.GetStoreStatusResponse, await self._health.status())

    async def garbage(self, *, dry_run: bool) -> list[pb.CollectGarbageResponse]:
        """The report of a collection; raises StoreUnavailableError and CatalogDamagedError."""
        return await self._threads(self._messages, dry_run)

    def _messages(self, dry_run: bool) -> list[pb.CollectGarbageResponse]:
        report = self._garbage.plan() if dry_run else self._garbage.run()
        parts = list(batches(report.removals, MAX_REMOVALS)) or [()]
        is_elsewhere = report.objects_elsewhere
        return [to_proto(pb.CollectGarbageResponse, GarbageReport(removals, is_elsewhere)) for removals in parts]
