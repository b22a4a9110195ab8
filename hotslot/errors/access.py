"""Errors of callers: who they are, and what they may do."""

from hotslot.errors.kinds import ForbiddenError, HotslotError, UnavailableError


class UnauthenticatedError(HotslotError, reason="UNAUTHENTICATED", code="UNAUTHENTICATED"):
    """A call that does not say who makes it, or says so with what is not valid."""


class TokenExpiredError(UnauthenticatedError, reason="TOKEN_EXPIRED"):
    """A token that was valid until its time ended."""


class TokenRevokedError(UnauthenticatedError, reason="TOKEN_REVOKED"):
    """A token that was valid until an operator revoked it."""


class ScopeMissingError(ForbiddenError, reason="SCOPE_MISSING"):
    """A principal without the scope that a call needs."""


class TenantForbiddenError(ForbiddenError, reason="TENANT_FORBIDDEN"):
    """A principal that names a tenant which is none of its own, whether it exists or not."""


class AuditUnavailableError(UnavailableError, reason="AUDIT_UNAVAILABLE"):
    """A change that is not made while the audit log cannot be written, where the operator has chosen that."""
