"""Tenant of a request, decided in one place: by the header that gRPC callers send as metadata.

An API key is taken and not looked at: callers are not authenticated yet.
"""

from starlette.requests import HTTPConnection

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.ids import DEFAULT_TENANT, TenantId, parse_tenant
from hotslot.rpc.tenant import TENANT_KEY


def tenant_of(connection: HTTPConnection) -> TenantId:
    """The calling tenant; raises InvalidRequestError for what is none."""
    values = connection.headers.getlist(TENANT_KEY)
    if not values:
        return DEFAULT_TENANT
    if len(values) > 1:
        raise InvalidRequestError([FieldViolation(TENANT_KEY, f"found {len(values)} headers, expected one")])
    return parse_tenant(values[0])
