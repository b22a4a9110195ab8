"""Settings of quotas, which store, workers and gateway have."""

from pathlib import Path

from pydantic import Field

from hotslot.contract.quotas import QuotaKind
from shared.quotas.limits import KINDS, MAX_LIMIT, Limits
from shared.settings import Settings


class QuotaSettings(Settings):
    """Limits of each tenant; one that is not set is no bound, and the file goes before these."""

    quotas_file: Path | None = None
    """JSON file of the quotas of tenants, and of those without a row; read again when it changes."""
    quota_bytes: int | None = Field(default=None, ge=0, le=MAX_LIMIT)
    """Most bytes of weights that a tenant may keep, each blob counted once; also of uploads that wait."""
    quota_adapters: int | None = Field(default=None, ge=0, le=MAX_LIMIT)
    """Most adapters of a tenant."""
    quota_versions: int | None = Field(default=None, ge=0, le=MAX_LIMIT)
    """Most versions of a tenant, of all its adapters together."""
    quota_uploads: int | None = Field(default=None, ge=0, le=MAX_LIMIT)
    """Most uploads of a tenant that one process receives at the same time."""
    quota_imports: int | None = Field(default=None, ge=0, le=MAX_LIMIT)
    """Most imports of a tenant that one store has under way."""
    quota_streams: int | None = Field(default=None, ge=0, le=MAX_LIMIT)
    """Most other calls with a stream, generations included, that one process runs for a tenant at the same time."""
    quota_requests_per_minute: int | None = Field(default=None, ge=0, le=MAX_LIMIT)
    """Most calls of a tenant in a minute; a minute's worth may come at once."""
    quota_tokens_per_minute: int | None = Field(default=None, ge=0, le=MAX_LIMIT)
    """Most tokens of a tenant's prompts and answers in a minute. A request is charged with what it may generate at
    most, and gets back what it did not."""
    quota_share_percent: int = Field(default=100, ge=1, le=100)
    """Share of a minute's limits that this process allows by itself, without Redis: with four workers behind a load
    balancer 25. Where processes count together in Redis, while that is away."""

    @property
    def default_limits(self) -> Limits:
        """Limits of tenants by these settings."""
        found = {kind: getattr(self, f"quota_{kind.value}") for kind in KINDS}
        return {kind: limit for kind, limit in found.items() if limit is not None}

    @property
    def limits_rates(self) -> bool:
        """Tell whether requests or tokens of a minute may be limited."""
        rates = (QuotaKind.REQUESTS_PER_MINUTE, QuotaKind.TOKENS_PER_MINUTE)
        return self.quotas_file is not None or any(kind in self.default_limits for kind in rates)
