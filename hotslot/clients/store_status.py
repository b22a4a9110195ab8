"""Call of the store's client on its status; a method of `StoreClient`."""

from hotslot.clients.policies import StoreCalls
from hotslot.codec import build, from_proto
from hotslot.contract.store_status import StoreStatus
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb

STATUS_TIMEOUT_S = 10.0
"""Each part is looked at for two seconds at most."""


async def status(self: StoreCalls, *, timeout_s: float = STATUS_TIMEOUT_S) -> StoreStatus:
    """Tell how the store's process is, and why a part of it does not work; it answers while others fail."""
    request = build(pb.GetStoreStatusRequest)
    answer = await self._connection.unary(self._stub.GetStoreStatus, request, timeout_s)
    return from_proto(StoreStatus, answer)
