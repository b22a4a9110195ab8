"""Answers to calls that list adapters and versions: asked of the catalog and encoded on one thread."""

from hotslot.codec import to_proto
from hotslot.ids import TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_name
from store_service.catalog.catalog import Catalog
from store_service.catalog.records import AdapterFilter
from store_service.rpc import contract
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of


def adapters(catalog: Catalog, request: pb.ListAdaptersRequest, tenant: TenantId) -> pb.ListAdaptersResponse:
    """Raises InvalidRequestError and InvalidPageTokenError."""
    wanted = AdapterFilter(
        base_model=request.base_model,
        labels=dict(request.labels),
        name_prefix=request.name_prefix,
        show_deleted=request.show_deleted,
    )
    limit = page_size_of(request.page_size)
    listing = ("adapters", sorted(wanted.labels.items()), wanted.base_model, wanted.name_prefix, wanted.show_deleted)
    name, position = decode_token(request.page_token, listing, ("", 0))
    found, revision = catalog.list_adapters(tenant, wanted, limit=limit, after=(str(name), int(position)))
    page, more = fitting((contract.adapter_message(record) for _, record in found), limit)
    token = encode_token(listing, (page[-1].name, found[len(page) - 1][0])) if more else ""
    return pb.ListAdaptersResponse(adapters=page, next_page_token=token, revision=revision)


def versions(catalog: Catalog, request: pb.ListVersionsRequest, tenant: TenantId) -> pb.ListVersionsResponse:
    """Raises as `Catalog.list_versions`, InvalidRequestError and InvalidPageTokenError."""
    name, limit = parse_name(request.adapter), page_size_of(request.page_size)
    listing = ("versions", name)
    (before,) = decode_token(request.page_token, listing, (0,))
    found = catalog.list_versions(tenant, name, limit=limit, before=int(before))
    page, more = fitting((to_proto(pb.Version, contract.summary_of(record)) for _, record in found), limit)
    token = encode_token(listing, (found[len(page) - 1][0],)) if more else ""
    return pb.ListVersionsResponse(versions=page, next_page_token=token)
