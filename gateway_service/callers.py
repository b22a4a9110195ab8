"""Tenant and least revision of a request, decided in one place: by the headers that gRPC callers send as metadata.

An API key is taken and not looked at: callers are not authenticated yet.
"""

from starlette.requests import HTTPConnection

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.ids import DEFAULT_TENANT, TenantId, parse_tenant
from hotslot.rpc.min_revision import noted_min_revision
from hotslot.rpc.tenant import TENANT_KEY


def tenant_of(connection: HTTPConnection) -> TenantId:
    """The calling tenant; raises InvalidRequestError for what is none."""
    values = connection.headers.getlist(TENANT_KEY)
    if not values:
        return DEFAULT_TENANT
    if len(values) > 1:
        raise InvalidRequestError([FieldViolation(TENANT_KEY, f"found {len(values)} headers, expected one")])
    return parse_tenant(values[0])


def min_revision_of(connection: HTTPConnection) -> int:
    """Revision of the tenant's catalog that the request is served at, or at a later one; 0 where none is named.

    Raises InvalidRequestError for what is no revision.
    """
    return noted_min_revision(connection.headers.items())
