"""Kinds of errors that callers tell apart: each has its status, and the errors of the other modules are cases of it."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from hotslot.errors.details import Detail
from hotslot.errors.violations import FieldViolation

MAX_NAMED_FIELDS = 32
"""In the message of an error; its attributes have all of them."""


class HotslotError(Exception):
    """Base of all errors that hotslot raises on purpose.

    A class names its reason, which is stable and stands for no other, its gRPC status unless that is its base's, and
    the attributes that travel. One without a reason of its own travels as its base.
    """

    reason: ClassVar[str] = "UNKNOWN"
    code: ClassVar[str] = "UNKNOWN"
    carries: ClassVar[Mapping[str, Detail]] = {}

    def __init_subclass__(cls, *, reason: str | None = None, code: str | None = None) -> None:
        cls.reason = reason or cls.reason
        cls.code = code or cls.code

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequestError(HotslotError, reason="INVALID_REQUEST", code="INVALID_ARGUMENT"):
    """The caller's message is wrong."""

    carries: ClassVar = {"fields": Detail.FIELDS}

    def __init__(self, fields: Sequence[FieldViolation], message: str | None = None) -> None:
        named = "; ".join(f"{f.field}: {f.description}" for f in fields[:MAX_NAMED_FIELDS])
        rest = f"; and {len(fields) - MAX_NAMED_FIELDS} more" if len(fields) > MAX_NAMED_FIELDS else ""
        super().__init__(message or f"invalid request: {named}{rest}")
        self.fields = tuple(fields)


class NotFoundError(HotslotError, reason="NOT_FOUND", code="NOT_FOUND"):
    """Something that does not exist, for this tenant."""

    carries: ClassVar = {"resource": Detail.RESOURCE}

    def __init__(self, message: str, resource: str) -> None:
        super().__init__(message)
        self.resource = resource


class ConflictError(HotslotError, reason="CONFLICT", code="ABORTED"):
    """Another caller was first: read the current state and try again."""


class PreconditionError(HotslotError, reason="FAILED_PRECONDITION", code="FAILED_PRECONDITION"):
    """The state does not allow the operation."""

    carries: ClassVar = {"subject": Detail.PRECONDITION}

    def __init__(self, message: str, subject: str) -> None:
        super().__init__(message)
        self.subject = subject


class ForbiddenError(HotslotError, reason="FORBIDDEN", code="PERMISSION_DENIED"):
    """Something that this caller may not do."""


class RangeError(HotslotError, reason="OUT_OF_RANGE", code="OUT_OF_RANGE"):
    """A position outside of what exists."""


class ExhaustedError(HotslotError, reason="RESOURCE_EXHAUSTED", code="RESOURCE_EXHAUSTED"):
    """A bound is reached."""

    carries: ClassVar = {"subject": Detail.QUOTA, "retry_after_s": Detail.RETRY}

    def __init__(self, message: str, *, subject: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.subject = subject
        self.retry_after_s = retry_after_s


class QuotaExceededError(ExhaustedError, reason="QUOTA_EXCEEDED"):
    """A size, count or rate limit."""


class TenantQuotaError(QuotaExceededError, reason="TENANT_QUOTA_EXCEEDED"):
    """A quota of the tenant that calls, which is the subject."""

    carries: ClassVar = {**ExhaustedError.carries, "quota": Detail.TEXT, "limit": Detail.NUMBER, "used": Detail.NUMBER}

    def __init__(
        self, tenant: str, quota: str, limit: int, used: int, *, advice: str, retry_after_s: float | None = None
    ) -> None:
        """`quota` is the kind as settings have it; without a time to retry after, waiting does not help."""
        words = quota.replace("_", " ")
        message = f"tenant {tenant!r} may have {limit:,} {words} and has {used:,}; {advice}"
        super().__init__(message, subject=tenant, retry_after_s=retry_after_s)
        self.quota = quota
        self.limit = limit
        self.used = used


class UnavailableError(HotslotError, reason="UNAVAILABLE", code="UNAVAILABLE"):
    """Something that should be there again soon."""

    carries: ClassVar = {"retry_after_s": Detail.RETRY}

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestDeadlineError(HotslotError, reason="DEADLINE_EXCEEDED", code="DEADLINE_EXCEEDED"):
    """The caller's deadline passed, or cannot be met."""


class RequestCancelledError(HotslotError, reason="CANCELLED", code="CANCELLED"):
    """The caller went away."""


class NotImplementedYetError(HotslotError, reason="NOT_IMPLEMENTED", code="UNIMPLEMENTED"):
    """Something that the protocol has and this version does not serve."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not implemented in this version")


class InternalError(HotslotError, reason="INTERNAL", code="INTERNAL"):
    """Our own fault."""
