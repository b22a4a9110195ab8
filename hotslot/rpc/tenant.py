"""Tenant of a call: it travels as the metadata key `hotslot-tenant`."""

from typing import Protocol

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.ids import DEFAULT_TENANT, TenantId, parse_tenant

TENANT_KEY = "hotslot-tenant"


class HasMetadata(Protocol):
    """The part of a servicer's context that is needed here."""

    def invocation_metadata(self) -> object:
        """Pairs of key and value, or None."""


def tenant_of(context: HasMetadata) -> TenantId:
    """The calling tenant; `default` when the call names none.

    Raises InvalidRequestError on a malformed tenant. Servers refuse such calls before the handler runs, so a handler
    may call this freely.
    """
    metadata = context.invocation_metadata()
    values = [value for key, value in metadata or () if key == TENANT_KEY]  # type: ignore[attr-defined]
    if not values:
        return DEFAULT_TENANT
    if len(values) > 1:
        raise InvalidRequestError([FieldViolation(TENANT_KEY, f"found {len(values)} values, expected one")])
    value = values[0]
    return parse_tenant(value if isinstance(value, str) else value.decode("ascii", "replace"))
