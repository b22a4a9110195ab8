"""One id for each request, on its response and on every line that is logged for it; and one line at its end."""

import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway_service.metrics import HttpNumbers
from gateway_service.traced_requests import TracedRequest
from hotslot.trace_context import trace_context_of
from shared.audit.watched_call import REQUEST_ID_KEY, ids_of
from shared.telemetry import bind_log_context

log = structlog.get_logger(__name__)

_QUIET = ("/health", "/health/live", "/ui/state")


def request_id_of(scope: Scope) -> str:
    """The id of a request."""
    request_id: str = scope["state"]["request_id"]
    return request_id


class AccessLog:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, numbers: HttpNumbers) -> None:
        self._app = app
        self._numbers = numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        traced = TracedRequest(scope, headers.items())
        given = ids_of(headers.get(REQUEST_ID_KEY), trace_context_of(headers.items()))
        request_id, trace_id = given["request_id"] or secrets.token_hex(12), given["trace_id"]
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        bind_log_context(request_id=request_id, **({"trace_id": trace_id} if trace_id else {}))
        began_s = time.monotonic()
        self._numbers.num_running += 1

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_KEY] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            duration_s = time.monotonic() - began_s
            self._numbers.num_running -= 1
            self._numbers.ended(scope, duration_s)
            self._tell(scope, duration_s)
            traced.ended(scope, self._numbers.route_of(scope))

    @staticmethod
    def _tell(scope: Scope, duration_s: float) -> None:
        state = scope["state"]
        served, usage = state.get("served"), state.get("usage", {})
        tell = log.debug if scope["path"] in _QUIET else log.info
        tell(
            "request_served",
            tenant=str(state.get("tenant", "")),
            method=scope["method"],
            path=scope["path"][:200],
            status=state.get("status", 0),
            ended=state.get("ended", ""),
            model=state.get("model", "")[:200],
            digests=[adapter.digest for adapter in served.adapters] if served is not None else [],
            prompt_tokens=usage.get("prompt_tokens", 0),
            answer_tokens=usage.get("completion_tokens", 0),
            duration_s=round(duration_s, 4),
        )
