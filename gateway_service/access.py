"""One id for each request, on its response and on every line that is logged for it; and one line at its end."""

import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.audit.watched_call import REQUEST_ID, REQUEST_ID_KEY
from shared.telemetry import bind_log_context

log = structlog.get_logger(__name__)

_QUIET = ("/health", "/health/live")


def request_id_of(scope: Scope) -> str:
    """The id of a request."""
    request_id: str = scope["state"]["request_id"]
    return request_id


class AccessLog:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_KEY, "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        bind_log_context(request_id=request_id)
        began_s = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_KEY] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._tell(scope, time.monotonic() - began_s)

    @staticmethod
    def _tell(scope: Scope, duration_s: float) -> None:
        state = scope["state"]
        served = state.get("served")
        tell = log.debug if scope["path"] in _QUIET else log.info
        tell(
            "request served",
            method=scope["method"],
            path=scope["path"][:200],
            status=state.get("status", 0),
            ended=state.get("ended", ""),
            model=state.get("model", "")[:200],
            digests=[adapter.digest for adapter in served.adapters] if served is not None else [],
            duration_s=round(duration_s, 4),
        )
