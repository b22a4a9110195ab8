"""Tenant of a call: it travels as the metadata key `hotslot-tenant`, and is believed as far as its caller is known."""

from contextvars import ContextVar
from typing import Protocol

from hotslot.ids import DEFAULT_TENANT, TenantId, parse_tenant
from hotslot.rpc.metadata import single_values

TENANT_KEY = "hotslot-tenant"
PRINCIPAL_KEY = "hotslot-principal"
"""Principal that a gateway acts for."""
SCOPES_KEY = "hotslot-scopes"
"""Scopes of that principal, separated by commas."""
FORWARDED_KEY = "hotslot-forwarded-by"
"""Metadata key: the worker_id of the worker that forwarded a request."""
CHARGED_KEY = "hotslot-charged"
"""Mark of a gateway that has charged the tenant for its request already."""
PARTY_KEY = "hotslot-party"
"""Party that a worker calls for, as the worker knows it that was called first."""
MAX_PARTY_CHARS = 256
SETTLED: ContextVar[TenantId | None] = ContextVar("settled tenant", default=None)
"""Tenant of the call that is being handled, where the server knows its callers."""


class HasMetadata(Protocol):
    """The part of a servicer's context that is needed here."""

    def invocation_metadata(self) -> object:
        """Pairs of key and value, or None."""


def tenant_of(context: HasMetadata) -> TenantId:
    """The calling tenant: the settled one, else the one that the call names, else `default`.

    Raises InvalidRequestError on a malformed tenant. Servers refuse such calls before the handler runs, so a handler
    may call this freely.
    """
    settled = SETTLED.get()
    return settled if settled is not None else named_tenant(context)


def named_tenant(context: HasMetadata) -> TenantId:
    """The tenant that a call names; raises as `tenant_of`."""
    metadata = context.invocation_metadata()
    named = single_values(metadata or (), (TENANT_KEY,)).get(TENANT_KEY)  # type: ignore[arg-type]
    return DEFAULT_TENANT if named is None else parse_tenant(named)
