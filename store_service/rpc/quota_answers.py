"""Answers to GetQuota: limits of a tenant beside what it has, as far as this store knows."""

from dataclasses import dataclass

from sqlalchemy import Engine

from hotslot.codec import to_proto
from hotslot.contract.quotas import QuotaKind, QuotaUsage, TenantQuota
from hotslot.ids import TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from shared.quotas.gate import QuotaGate
from shared.quotas.limits import KINDS
from shared.server.deadline import HasDeadline
from store_service.catalog.quota_checks import stored_use
from store_service.execution.call_queue import CallQueue
from store_service.imports.importer import Importer

_RATES = (QuotaKind.REQUESTS_PER_MINUTE, QuotaKind.TOKENS_PER_MINUTE)


@dataclass(frozen=True, slots=True)
class QuotaAnswers:
    """Parts that know what a tenant has."""

    gate: QuotaGate
    engine: Engine
    importer: Importer
    lookups: CallQueue

    async def get(self, tenant: TenantId, caller: HasDeadline) -> pb.GetQuotaResponse:
        """Every kind, in the order of the protos."""
        used: dict[QuotaKind, int | None] = dict((await self.lookups(caller, stored_use, self.engine, tenant)).counts)
        for kind in (QuotaKind.UPLOADS, QuotaKind.STREAMS):
            used[kind] = self.gate.held(tenant, kind)
        used[QuotaKind.IMPORTS] = self.importer.under_way(tenant)
        for kind in _RATES:
            used[kind] = await self.gate.rates.used(tenant, kind)
        limits = self.gate.limits.of(tenant)
        usages = tuple(QuotaUsage(kind, limits.get(kind), used[kind]) for kind in KINDS)
        return to_proto(pb.GetQuotaResponse, TenantQuota(tenant, usages))
