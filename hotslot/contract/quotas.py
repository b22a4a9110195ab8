"""Quotas of a tenant: kinds of what it may have so much of, and what it has."""

from dataclasses import dataclass
from enum import StrEnum


class QuotaKind(StrEnum):
    """Something of which a tenant may have so much."""

    UNSPECIFIED = "unspecified"
    """A kind that this release does not know."""
    BYTES = "bytes"
    ADAPTERS = "adapters"
    VERSIONS = "versions"
    UPLOADS = "uploads"
    IMPORTS = "imports"
    STREAMS = "streams"
    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"


@dataclass(frozen=True, slots=True)
class QuotaUsage:
    """Usage of one quota by a tenant."""

    kind: QuotaKind
    limit: int | None = None
    """None where there is no bound."""
    used: int | None = None
    """None where the store does not know."""


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """Every quota of a tenant."""

    tenant: str
    usages: tuple[QuotaUsage, ...]
