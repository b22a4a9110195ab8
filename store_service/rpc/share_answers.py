"""Answers to calls about callers and shares; the latter are asked of the catalog and encoded on one thread."""

from collections.abc import Sequence

from hotslot.codec import to_proto
from hotslot.contract.moments import moment
from hotslot.contract.sharing import AdapterShare, KnownCaller
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.formats.principals import EVERY_TENANT, Scope
from hotslot.ids import AdapterName, TenantId, parse_tenant
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_name, split_owner
from shared.identity.callers import CALLER
from store_service.catalog.records import ShareRecord
from store_service.catalog.shares import Shares
from store_service.rpc import contract
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of

MAX_NAMED = 256
"""Most tenants of one request."""
_OWN, _OTHERS = ("shares",), ("shared adapters",)


def known_caller(tenant: TenantId) -> KnownCaller:
    """The caller of the call that is being handled, for that tenant."""
    caller = CALLER.get()
    if caller is None:
        return KnownCaller("", (EVERY_TENANT,), tuple(scope.value for scope in Scope), tenant, None)
    scopes = tuple(scope.value for scope in Scope if scope in caller.scopes)
    ends = moment(caller.expires_s) if caller.expires_s else None
    return KnownCaller(caller.name, tuple(sorted(caller.tenants)), scopes, tenant, ends)


def share(shares: Shares, request: pb.ShareAdapterRequest, tenant: TenantId) -> pb.ShareAdapterResponse:
    """Raises as `Shares.share`, and InvalidRequestError."""
    others = _tenants_of(request)
    if not others:
        raise InvalidRequestError([FieldViolation("tenants", "name a tenant, or set all_tenants")])
    record = shares.share(tenant, parse_name(request.adapter), others)
    return pb.ShareAdapterResponse(share=_message(record), revision=record.revision)


def unshare(shares: Shares, request: pb.UnshareAdapterRequest, tenant: TenantId) -> pb.UnshareAdapterResponse:
    """Raises as `Shares.unshare`, and InvalidRequestError."""
    record = shares.unshare(tenant, parse_name(request.adapter), _tenants_of(request))
    return pb.UnshareAdapterResponse(share=_message(record), revision=record.revision)


def own_page(shares: Shares, request: pb.ListSharesRequest, tenant: TenantId) -> pb.ListSharesResponse:
    """Raises InvalidRequestError and InvalidPageTokenError."""
    limit = page_size_of(request.page_size)
    (after,) = decode_token(request.page_token, _OWN, ("",))
    found = shares.of_tenant(tenant, limit=limit, after=str(after))
    shown, more = fitting(map(_message, found), limit)
    token = encode_token(_OWN, (shown[-1].adapter,)) if more else ""
    return pb.ListSharesResponse(shares=shown, next_page_token=token)


def others_page(
    shares: Shares, request: pb.ListSharedAdaptersRequest, tenant: TenantId
) -> pb.ListSharedAdaptersResponse:
    """Raises InvalidRequestError and InvalidPageTokenError."""
    limit = page_size_of(request.page_size)
    owner, name = decode_token(request.page_token, _OTHERS, ("", ""))
    found = shares.shared_with(tenant, limit=limit, after=(str(owner), str(name)))
    shown, more = fitting(map(contract.adapter_message, found), limit)
    last = split_owner(AdapterName(shown[-1].name)) if more else (None, "")
    token = encode_token(_OTHERS, (last[0] or "", last[1])) if more else ""
    return pb.ListSharedAdaptersResponse(adapters=shown, next_page_token=token)


def _tenants_of(request: pb.ShareAdapterRequest | pb.UnshareAdapterRequest) -> Sequence[str]:
    """Tenants that a request names, EVERY_TENANT for all; raises InvalidRequestError."""
    if len(request.tenants) > MAX_NAMED:
        problem = f"found {len(request.tenants)}, expected at most {MAX_NAMED}"
        raise InvalidRequestError([FieldViolation("tenants", problem)])
    named: list[str] = []
    for index, text in enumerate(request.tenants):
        try:
            named.append(parse_tenant(text))
        except InvalidRequestError as exc:
            raise InvalidRequestError([FieldViolation(f"tenants[{index}]", exc.fields[0].description)]) from exc
    return [*named, *([EVERY_TENANT] if request.all_tenants else [])]


def _message(record: ShareRecord) -> pb.AdapterShare:
    time_s = record.update_time_s
    shared = AdapterShare(
        record.adapter, record.tenants, record.all_tenants, moment(time_s) if time_s is not None else None
    )
    return to_proto(pb.AdapterShare, shared)
