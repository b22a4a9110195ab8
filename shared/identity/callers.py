"""Decisions about callers, without I/O: the tenant that a principal calls for, and the one that a gateway acts for."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from hotslot.errors import FieldViolation, InvalidRequestError, TenantForbiddenError, UnauthenticatedError
from hotslot.formats.principals import CLIENT_SCOPES, EVERY_TENANT, Principal, Scope
from hotslot.ids import DEFAULT_TENANT, TenantId, parse_tenant
from hotslot.rpc.security import AUTHORIZATION
from hotslot.rpc.tenant import PRINCIPAL_KEY, SCOPES_KEY, TENANT_KEY
from shared.identity.needs import NEEDS, About

OF_CALLERS = frozenset({TENANT_KEY, PRINCIPAL_KEY, SCOPES_KEY, AUTHORIZATION})
"""Metadata that says who calls."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Principal of one call, and the tenant that the call is for."""

    name: str
    tenant: TenantId
    scopes: frozenset[Scope]
    tenants: frozenset[str]
    via: str = ""
    """Gateway that acts for it."""
    expires_s: float = 0.0
    """Unix time at which its token ends by itself; 0 where nothing says so."""


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Caller of the call that is being handled; None where each is believed."""


def may_see(tenant: str) -> bool:
    """Tell whether the call that is being handled may be told of a tenant's adapters."""
    caller = CALLER.get()
    return caller is None or EVERY_TENANT in caller.tenants or tenant in caller.tenants


def caller_of(method: str, principal: Principal, metadata: Mapping[str, str]) -> Caller:
    """The caller of a method, which may make the call.

    Raises ScopeMissingError, TenantForbiddenError, InvalidRequestError for a tenant that is to be named and is not, and
    UnauthenticatedError for a method without a row.
    """
    need = NEEDS.get(method)
    if need is None:
        raise UnauthenticatedError(f"{method.removeprefix('/')} is called by nobody")
    acted_for = metadata.get(PRINCIPAL_KEY)
    if acted_for is not None and Scope.GATEWAY in principal.scopes:
        scopes, via = _scopes_of(metadata.get(SCOPES_KEY, "")), principal.name
        need.check(method, scopes, acted_for)
        tenant = tenant_for(principal, metadata.get(TENANT_KEY), need.about)
        return Caller(acted_for, tenant, scopes, principal.tenants, via)
    need.check(method, principal.scopes, principal.name)
    tenant = tenant_for(principal, metadata.get(TENANT_KEY), need.about)
    return Caller(principal.name, tenant, principal.scopes, principal.tenants)


def tenant_for(principal: Principal, named: str | None, about: About = About.TENANT) -> TenantId:
    """The tenant that a principal calls for: the one that it names, of its own, or the only one, or the default.

    Raises TenantForbiddenError, and InvalidRequestError where it has to name one.
    """
    if named is not None:
        tenant = parse_tenant(named)
        if principal.may_name(tenant):
            return tenant
        if about is About.TENANT:
            raise TenantForbiddenError(f"tenant {tenant!r} is none of {principal.name}'s")
    own = principal.tenants - {EVERY_TENANT}
    if len(own) == 1 and EVERY_TENANT not in principal.tenants:
        return TenantId(next(iter(own)))
    if about is About.DEPLOYMENT or principal.may_name(DEFAULT_TENANT):
        return DEFAULT_TENANT
    some = ", ".join(sorted(own)[:8]) or "none"
    raise InvalidRequestError([FieldViolation(TENANT_KEY, f"{principal.name} has several tenants; name one of {some}")])


def _scopes_of(text: str) -> frozenset[Scope]:
    known = {scope.value: scope for scope in CLIENT_SCOPES}
    return frozenset(known[word] for word in text.split(",") if word in known)
