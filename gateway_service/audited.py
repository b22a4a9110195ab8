"""The gateway's part of the audit log: requests that change or use, by their paths."""

import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway_service.access import request_id_of
from gateway_service.callers import tenant_of
from gateway_service.errors import api_error
from hotslot.errors import AuditUnavailableError, InvalidRequestError
from hotslot.trace_context import trace_context_of
from shared.audit.acts import Act
from shared.audit.audit_log import AuditLog
from shared.audit.objects import shortened
from shared.audit.watched_call import ids_of

ACTS: Mapping[str, Act] = {
    "/v1/chat/completions": Act.USE,
    "/v1/completions": Act.USE,
    "/v1/load_lora_adapter": Act.CHANGE,
    "/v1/unload_lora_adapter": Act.CHANGE,
    "/tokenize": Act.USE,
    "/detokenize": Act.USE,
}
"""Paths that the log may have; the others look."""


class AuditedRequests:
    """ASGI middleware that knows the id of a request already, and is around what knows its caller."""

    def __init__(self, app: ASGIApp, audit: AuditLog, *, knows_callers: bool) -> None:
        self._app = app
        self._audit = audit
        self._knows_callers = knows_callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        act = ACTS.get(scope["path"]) if scope["type"] == "http" else None
        if act is None or not self._audit.has(act):
            await self._app(scope, receive, send)
            return
        record, began_s, is_told = _record(scope, act), time.perf_counter(), False
        try:
            await self._audit.begin(record)
        except AuditUnavailableError as exc:
            told = api_error(exc)
            scope["state"]["ended"] = told.code
            await JSONResponse(told.body(), told.status, told.headers())(scope, receive, send)
            return

        async def tell(status: int) -> None:
            nonlocal is_told
            state = scope["state"]
            is_told = True
            if self._knows_callers and not state.get("principal") and not self._audit.may_tell_of_unknown(time.time()):
                return
            outcome = {"code": str(status), "reason": state.get("ended", "")}
            duration_ms = round((time.perf_counter() - began_s) * 1e3, 3)
            await self._audit.tell({**record, **_known(scope), **outcome, "duration_ms": duration_ms})

        async def send_after(message: Message) -> None:
            if message["type"] == "http.response.start" and act is Act.CHANGE:
                await tell(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_after)
        finally:
            if not is_told:
                await tell(scope["state"].get("status", 0))


def _record(scope: Scope, act: Act) -> dict[str, Any]:
    client = scope.get("client") or ("", 0)
    return {
        "principal": "",
        "acting_for": "",
        "tenant": "",
        "peer": f"{client[0]}:{client[1]}",
        "rpc": f"{scope['method']} {scope['path']}",
        "act": act.value,
        **ids_of(request_id_of(scope), trace_context_of(Headers(scope=scope).items())),
    }


def _known(scope: Scope) -> dict[str, Any]:
    """Caller and objects of a request, once it was served."""
    state = scope["state"]
    try:
        tenant = str(tenant_of(HTTPConnection(scope)))
    except InvalidRequestError:
        tenant = ""
    served = state.get("served")
    named = {name: shortened(state[name]) for name in ("model", "source") if state.get(name)}
    digests = {"digests": [adapter.digest for adapter in served.adapters]} if served is not None else {}
    return {"principal": state.get("principal", ""), "tenant": tenant, "object": {**named, **digests}}
