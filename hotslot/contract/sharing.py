"""Callers as the store knows them, and what they share."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class KnownCaller:
    """Caller as the store knows it."""

    principal: str
    """Empty where the store believes each caller."""
    tenants: tuple[str, ...]
    """Tenants that it may call for; `*` is every one."""
    scopes: tuple[str, ...]
    tenant: str
    """Tenant that the call was for."""
    expire_time: datetime | None
    """End of its token; None where nothing says so."""


@dataclass(frozen=True, slots=True)
class AdapterShare:
    """Tenants that may read and use an adapter, in all of its versions and tags, besides its owner."""

    adapter: str
    tenants: tuple[str, ...]
    """Those that were named, in order."""
    all_tenants: bool
    """Every tenant may."""
    update_time: datetime | None
    """Time of the last share that still holds; None where the adapter is not shared."""
