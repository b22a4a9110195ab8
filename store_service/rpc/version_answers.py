"""Pages of an adapter's versions: asked of the catalog and encoded on one thread."""

from hotslot.codec import to_proto
from hotslot.ids import TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_name
from store_service.catalog.catalog import Catalog
from store_service.rpc import contract
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of


def page(catalog: Catalog, request: pb.ListVersionsRequest, tenant: TenantId) -> pb.ListVersionsResponse:
    """Raises as `Catalog.list_versions`, InvalidRequestError and InvalidPageTokenError."""
    name, limit = parse_name(request.adapter), page_size_of(request.page_size)
    listing = ("versions", name)
    (before,) = decode_token(request.page_token, listing, (0,))
    found = catalog.list_versions(tenant, name, limit=limit, before=int(before))
    shown, more = fitting((to_proto(pb.Version, contract.summary_of(record)) for _, record in found), limit)
    token = encode_token(listing, (found[len(shown) - 1][0],)) if more else ""
    return pb.ListVersionsResponse(versions=shown, next_page_token=token)
