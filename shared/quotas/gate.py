"""The gate of a server: a tenant's calls are charged, and those that run are counted, before anything else is done.

A call is charged once, by the service that a caller of the tenant's own reached: what workers and gateways ask on its
behalf is not charged again, and what a worker asks is not counted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import TenantQuotaError
from hotslot.formats.principals import Scope
from hotslot.rpc.tenant import CHARGED_KEY, FORWARDED_KEY
from shared.identity.callers import Caller
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates
from shared.server.counters import QUOTA_REFUSALS, Counters

RETRY_AFTER_S = 0.5

_STORE = "/hotslot.store.v1.AdapterStoreService"
UPLOADS = frozenset({"/hotslot.store.v1.BlobService/WriteBlob", f"{_STORE}/PublishVersion"})
WHOLE_ANSWERS = frozenset({"/hotslot.worker.v1.InferenceService/Complete"})
"""Calls without a stream that run as long as one."""
FREE = frozenset({f"{_STORE}/GetQuota"})
"""Calls that are not charged: a tenant may always see what it has left."""


def held_kind(method: str, *, is_stream: bool) -> QuotaKind | None:
    """The quota that a call counts for while it runs; None for those that are over at once."""
    if method in UPLOADS:
        return QuotaKind.UPLOADS
    return QuotaKind.STREAMS if is_stream or method in WHOLE_ANSWERS else None


class QuotaGate:
    """Gate of one server. Lives on its event loop."""

    def __init__(self, limits: TenantLimits, rates: Rates, counters: Counters) -> None:
        self.limits = limits
        self.rates = rates
        self.counters = counters
        self._held: Counter[tuple[str, QuotaKind]] = Counter()

    async def enter(
        self,
        method: str,
        tenant: str,
        caller: Caller | None,
        metadata: Iterable[tuple[str, str | bytes]],
        kind: QuotaKind | None,
    ) -> QuotaKind | None:
        """Let a call in; returns what `leave` is to be told. Raises TenantQuotaError."""
        limits = self.limits.of(tenant)
        if not limits or (caller is not None and Scope.WORKER in caller.scopes):
            return None
        try:
            if QuotaKind.REQUESTS_PER_MINUTE in limits and method not in FREE and not is_charged(caller, metadata):
                await self.rates.take(tenant, QuotaKind.REQUESTS_PER_MINUTE, 1)
            if kind is not None:
                self._hold(tenant, kind, limits)
        except TenantQuotaError as exc:
            self.counters.add(QUOTA_REFUSALS, exc.quota)
            raise
        return kind

    def leave(self, tenant: str, kind: QuotaKind | None) -> None:
        """The call is over."""
        if kind is not None:
            self._held[tenant, kind] -= 1
            if not self._held[tenant, kind]:
                del self._held[tenant, kind]

    def held(self, tenant: str, kind: QuotaKind) -> int:
        """Calls of a kind that run now."""
        return self._held[tenant, kind]

    def _hold(self, tenant: str, kind: QuotaKind, limits: Mapping[QuotaKind, int]) -> None:
        limit, held = limits.get(kind), self._held[tenant, kind]
        if limit is not None and held >= limit:
            advice = "try again when one of them has ended"
            raise TenantQuotaError(tenant, kind.value, limit, held, advice=advice, retry_after_s=RETRY_AFTER_S)
        self._held[tenant, kind] += 1


def is_charged(caller: Caller | None, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Tell whether a service has charged the tenant for a call: a gateway or, where each caller is believed, any."""
    keys = {key for key, _ in metadata}
    if caller is None:
        return not keys.isdisjoint((CHARGED_KEY, FORWARDED_KEY))
    return bool(caller.via) and CHARGED_KEY in keys
