"""Calls of the store's client about the process itself: its status, its garbage; methods of `StoreClient`."""

from contextlib import aclosing

from hotslot.clients.policies import StoreCalls
from hotslot.codec import build, from_proto
from hotslot.contract.garbage import GarbageReport, Removal
from hotslot.contract.store_status import StoreStatus
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb

STATUS_TIMEOUT_S = 10.0
"""Each part is looked at for two seconds at most."""
GARBAGE_TIMEOUT_S = 1800.0
"""Everything that the store has is looked at."""


async def status(self: StoreCalls, *, timeout_s: float = STATUS_TIMEOUT_S) -> StoreStatus:
    """Tell how the store's process is, and why a part of it does not work; it answers while others fail."""
    request = build(pb.GetStoreStatusRequest)
    answer = await self._connection.unary(self._stub.GetStoreStatus, request, timeout_s)
    return from_proto(StoreStatus, answer)


async def collect_garbage(
    self: StoreCalls, *, dry_run: bool = True, timeout_s: float = GARBAGE_TIMEOUT_S
) -> GarbageReport:
    """Remove now what nothing needs any more, or, as long as it is a dry run, tell what would go, and why.

    The report of a dry run also has what stays for now (`GarbageReport.due` is without). For operators.
    """
    removals: list[Removal] = []
    is_elsewhere = False
    request = build(pb.CollectGarbageRequest, dry_run=dry_run)
    async with aclosing(self._connection.stream(self._stub.CollectGarbage, request, timeout_s)) as stream:
        async for message in stream:
            part = from_proto(GarbageReport, message)
            removals += part.removals
            is_elsewhere = is_elsewhere or part.objects_elsewhere
    return GarbageReport(tuple(removals), is_elsewhere)
