"""Answer of AdapterStoreService with adapters, page by page."""

from hotslot.ids import TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.catalog.catalog import Catalog
from store_service.catalog.records import AdapterFilter
from store_service.rpc.contract import adapter_message
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of


def page(catalog: Catalog, request: pb.ListAdaptersRequest, tenant: TenantId) -> pb.ListAdaptersResponse:
    """Adapters by name; raises InvalidPageTokenError."""
    wanted = AdapterFilter(
        base_model=request.base_model,
        labels=dict(request.labels),
        name_prefix=request.name_prefix,
        show_deleted=request.show_deleted,
    )
    limit = page_size_of(request.page_size)
    filters = (sorted(wanted.labels.items()), wanted.base_model, wanted.name_prefix, wanted.show_deleted)
    listing = ("adapters", *filters)
    name, position = decode_token(request.page_token, listing, ("", 0))
    found, revision = catalog.list_adapters(tenant, wanted, limit=limit, after=(str(name), int(position)))
    fits, more = fitting((adapter_message(record) for _, record in found), limit)
    token = encode_token(listing, (fits[-1].name, found[len(fits) - 1][0])) if more else ""
    return pb.ListAdaptersResponse(adapters=fits, next_page_token=token, revision=revision)
