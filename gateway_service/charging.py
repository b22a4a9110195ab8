"""Requests are charged where they arrive, before their bodies are read; services below are told that they were."""

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway_service.callers import KEYED, tenant_of
from gateway_service.errors import api_error
from hotslot.contract.quotas import QuotaKind
from hotslot.errors import HotslotError, TenantQuotaError
from shared.quotas.gate import QuotaGate
from shared.server.counters import QUOTA_REFUSALS


class ChargedRequests:
    """ASGI middleware that knows the caller of a request already."""

    def __init__(self, app: ASGIApp, gate: QuotaGate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(KEYED):
            try:
                await self._gate.rates.take(tenant_of(HTTPConnection(scope)), QuotaKind.REQUESTS_PER_MINUTE, 1)
            except HotslotError as exc:
                if isinstance(exc, TenantQuotaError):
                    self._gate.counters.add(QUOTA_REFUSALS, exc.quota)
                told = api_error(exc)
                scope["state"]["ended"] = told.code
                await JSONResponse(told.body(), told.status, told.headers())(scope, receive, send)
                return
        await self._app(scope, receive, send)
