"""Calls of the store's client on shares, and on the caller itself; each is a method of `StoreClient`."""

from collections.abc import AsyncGenerator, Sequence

from hotslot.clients.policies import PAGE_SIZE, StoreCalls
from hotslot.codec import build, from_proto
from hotslot.contract.catalog import Adapter
from hotslot.contract.sharing import AdapterShare, KnownCaller
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb


async def share(self: StoreCalls, name: str, tenants: Sequence[str] = (), *, all_tenants: bool = False) -> AdapterShare:
    """Let tenants, or all of them, read and use an adapter as `owner~name`, in all of its versions and tags."""
    request = build(pb.ShareAdapterRequest, adapter=name, tenants=tenants, all_tenants=all_tenants)
    return from_proto(AdapterShare, (await self._write(self._stub.ShareAdapter, request)).share)


async def unshare(
    self: StoreCalls, name: str, tenants: Sequence[str] = (), *, all_tenants: bool = False
) -> AdapterShare:
    """End shares of an adapter: with these tenants, with all (those that were named keep theirs), or each of them."""
    request = build(pb.UnshareAdapterRequest, adapter=name, tenants=tenants, all_tenants=all_tenants)
    return from_proto(AdapterShare, (await self._write(self._stub.UnshareAdapter, request)).share)


async def list_shares(self: StoreCalls) -> AsyncGenerator[AdapterShare, None]:
    """Own adapters that are shared, by name; pages are fetched as they are needed."""
    request = build(pb.ListSharesRequest, page_size=PAGE_SIZE)
    async for page in self._connection.pages(self._stub.ListShares, request):
        for shared in page.shares:
            yield from_proto(AdapterShare, shared)


async def list_shared_adapters(self: StoreCalls) -> AsyncGenerator[Adapter, None]:
    """Adapters that other tenants share with this one, by owner and name, named as this tenant names them."""
    request = build(pb.ListSharedAdaptersRequest, page_size=PAGE_SIZE)
    async for page in self._connection.pages(self._stub.ListSharedAdapters, request):
        for adapter in page.adapters:
            yield from_proto(Adapter, adapter)


async def caller(self: StoreCalls) -> KnownCaller:
    """This client as the store knows it."""
    return from_proto(KnownCaller, await self._connection.unary(self._stub.GetCaller, build(pb.GetCallerRequest)))
