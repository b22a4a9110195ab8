"""The gateway's routes: each handler decodes, makes one call and encodes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gateway_service import lora_updates, models, openapi, tokens
from gateway_service.access import AccessLog, request_id_of
from gateway_service.answers import Kind
from gateway_service.audited import AuditedRequests
from gateway_service.bodies import read_object
from gateway_service.callers import KnownCallers, min_revision_of, tenant_of
from gateway_service.charging import ChargedRequests
from gateway_service.deployment import Deployment
from gateway_service.errors import ApiError, ParamOf, api_error
from gateway_service.exchange import Exchange, GenerationResponse
from gateway_service.live_look import LiveStates
from gateway_service.metrics import HttpNumbers
from gateway_service.paced_requests import PacedRequests
from gateway_service.page import HTML, page_response
from gateway_service.request_bodies import LoadAdapterBody, UnloadAdapterBody, parsed
from gateway_service.settings import GatewaySettings
from gateway_service.token_bodies import DetokenizeBody, TokenizeBody
from gateway_service.tool_formats import ToolFormats, parsed_formats
from gateway_service.translation import (
    WantedAnswer,
    chat_from,
    chat_param,
    completion_from,
    completion_param,
    detokenize_param,
)
from hotslot.errors import HotslotError, NoWorkersError
from hotslot.rpc.server_facts import installed_version
from shared.audit.audit_log import AuditLog
from shared.identity.authenticator import Authenticator
from shared.metrics.endpoint import Text
from shared.metrics.exposition import CONTENT_TYPE
from shared.quotas.gate import QuotaGate
from shared.server.counters import Counters
from shared.server.stream_places import StreamLimit, StreamPlaces

REVISION_HEADER = "hotslot-revision"
"""Revision that a write returned: a later request is served by what was written with it as `hotslot-min-revision`."""
Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class Gateway:
    """Handlers, and the parts that they call."""

    settings: GatewaySettings
    deployment: Deployment
    authenticator: Authenticator | None = None
    audit: AuditLog | None = None
    scrape: Text | None = None
    """Makes the text of /metrics, where it is served beside the API."""
    numbers: HttpNumbers = field(default_factory=HttpNumbers)
    gate: QuotaGate | None = None
    exchange: Exchange = field(init=False)
    live_states: LiveStates = field(init=False)
    formats: ToolFormats = field(init=False)
    is_stopping: bool = False

    def __post_init__(self) -> None:
        limit = StreamLimit("HOTSLOT_GATEWAY_MAX_REQUESTS", self.settings.gateway_max_requests, ())
        self.live_states = LiveStates(self.deployment)
        self.formats = parsed_formats(self.settings.gateway_tool_parser)
        self.exchange = Exchange(StreamPlaces(limit), self.settings.gateway_stall_s)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        wanted, _ = chat_from(await self._body(request), request_id_of(request.scope))
        return await self._generation(request, "chat", wanted, chat_param)

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        wanted, _ = completion_from(await self._body(request), request_id_of(request.scope))
        return await self._generation(request, "completion", wanted, completion_param)

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        cards = [card async for card in models.cards(self.deployment, tenant_of(request))]
        return JSONResponse({"object": "list", "data": cards})

    async def get_model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        return JSONResponse(await models.card_of(self.deployment, tenant_of(request), request.path_params["model"]))

    async def load_adapter(self, request: Request) -> Response:
        """POST /v1/load_lora_adapter."""
        self._check_updates()
        body = parsed(LoadAdapterBody, await self._body(request))
        request.state.model, request.state.source = body.lora_name, body.lora_path
        text, revision = await lora_updates.load(self.deployment, tenant_of(request), body, min_revision_of(request))
        return PlainTextResponse(text, headers={REVISION_HEADER: str(revision)} if revision else None)

    async def unload_adapter(self, request: Request) -> Response:
        """POST /v1/unload_lora_adapter."""
        self._check_updates()
        body = parsed(UnloadAdapterBody, await self._body(request))
        request.state.model = body.lora_name
        return PlainTextResponse(await lora_updates.unload(self.deployment, tenant_of(request), body))

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        body = parsed(TokenizeBody, await self._body(request))
        return await self._counted(chat_param, tokens.tokenize(self.deployment, tenant_of(request), body))

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        body = parsed(DetokenizeBody, await self._body(request))
        return await self._counted(detokenize_param, tokens.detokenize(self.deployment, tenant_of(request), body))

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while requests can be served."""
        if self.is_stopping:
            raise ApiError(503, "DRAINING", "the gateway is stopping", kind="server_error", retry_after_s=1.0)
        await self.deployment.check()
        return Response()

    async def live(self, request: Request) -> Response:
        """GET /health/live: 200 while the process answers."""
        return Response()

    async def version(self, request: Request) -> Response:
        """GET /version."""
        return JSONResponse({"version": installed_version()})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        if self.scrape is None:
            message = "metrics are not served here; HOTSLOT_GATEWAY_METRICS=true turns them on"
            raise ApiError(404, "UNKNOWN_PATH", message, kind="not_found_error")
        return Response(await self.scrape(), media_type=CONTENT_TYPE)

    async def document(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(openapi.document(installed_version()))

    async def page(self, request: Request) -> Response:
        """GET /docs."""
        return HTMLResponse(openapi.page(installed_version()))

    async def ui(self, request: Request) -> Response:
        """GET /ui."""
        self._check_ui()
        return page_response(HTML)

    async def ui_file(self, request: Request) -> Response:
        """GET /ui/files/{name}."""
        self._check_ui()
        return page_response(request.path_params["name"])

    async def ui_state(self, request: Request) -> Response:
        """GET /ui/state."""
        self._check_ui()
        return JSONResponse(await self.live_states.of(tenant_of(request)), headers={"cache-control": "no-store"})

    async def _counted(self, param_of: ParamOf, answer: Awaitable[dict[str, object]]) -> Response:
        try:
            return JSONResponse(await answer)
        except HotslotError as exc:
            raise api_error(exc, param_of) from exc

    async def _body(self, request: Request) -> dict[str, object]:
        settings = self.settings
        return await read_object(request, settings.gateway_max_body_bytes, settings.gateway_body_timeout_s)

    async def _generation(self, request: Request, kind: Kind, wanted: WantedAnswer, param_of: ParamOf) -> Response:
        tenant, min_revision = tenant_of(request), min_revision_of(request)
        try:
            base_model, adapters, base_only = await models.selected(self.deployment, wanted)
        except NoWorkersError:
            await self.deployment.tell_wanted(tenant, wanted.model)
            raise
        if wanted.may_call:
            formats = {base.digest: self.formats.of(base.digest, base.name) for base in await self.deployment.bases()}
            found = {digest: format_ for digest, format_ in formats.items() if format_ is not None}
            wanted = replace(wanted, tool_formats=found)
        streams = [
            self.deployment.generate(
                tenant,
                replace(one, adapters=adapters, base_only=base_only, min_revision=min_revision),
                base_model,
                self.settings.gateway_timeout_s,
            )
            for one in wanted.requests
        ]
        request.state.model = wanted.model
        return GenerationResponse(self.exchange, tenant, kind, wanted, streams, request_id_of(request.scope), param_of)

    def _check_ui(self) -> None:
        if not self.settings.gateway_ui:
            message = "the page is not served here; HOTSLOT_GATEWAY_UI=true turns it on"
            raise ApiError(404, "UNKNOWN_PATH", message, kind="not_found_error")

    def _check_updates(self) -> None:
        if not self.settings.gateway_lora_updates:
            message = "loading and unloading is off here; HOTSLOT_GATEWAY_LORA_UPDATES=true turns it on"
            raise ApiError(403, "FORBIDDEN", message, kind="permission_error")


def routes_of(gateway: Gateway) -> list[Route]:
    """Every path that is served."""
    return [
        Route("/v1/chat/completions", gateway.chat, methods=["POST"]),
        Route("/v1/completions", gateway.completion, methods=["POST"]),
        Route("/v1/models", gateway.list_models, methods=["GET"]),
        Route("/v1/models/{model:path}", gateway.get_model, methods=["GET"]),
        Route("/v1/load_lora_adapter", gateway.load_adapter, methods=["POST"]),
        Route("/v1/unload_lora_adapter", gateway.unload_adapter, methods=["POST"]),
        Route("/tokenize", gateway.tokenize, methods=["POST"]),
        Route("/detokenize", gateway.detokenize, methods=["POST"]),
        Route("/health", gateway.health, methods=["GET"]),
        Route("/health/live", gateway.live, methods=["GET"]),
        Route("/version", gateway.version, methods=["GET"]),
        Route("/metrics", gateway.metrics, methods=["GET"]),
        Route("/ui", gateway.ui, methods=["GET"]),
        Route("/ui/files/{name}", gateway.ui_file, methods=["GET"]),
        Route("/ui/state", gateway.ui_state, methods=["GET"]),
        Route("/openapi.json", gateway.document, methods=["GET"]),
        Route("/docs", gateway.page, methods=["GET"]),
    ]


def application(gateway: Gateway) -> Starlette:
    """The ASGI application."""
    routes = routes_of(gateway)
    gateway.numbers.know({route.endpoint: route.path for route in routes})
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _tell_api_error,
            HotslotError: _tell_domain_error,
            HTTPException: _tell_http_error,
            Exception: _tell_bug,
        },
    )
    app.router.redirect_slashes = False
    if gateway.gate is not None:
        app.add_middleware(ChargedRequests, gate=gateway.gate)
    if gateway.authenticator is not None:
        scopes = frozenset(gateway.settings.gateway_anonymous_scopes)
        counters = gateway.gate.counters if gateway.gate is not None else Counters()
        paced = PacedRequests(gateway.settings.gateway_max_calls_per_s, counters)
        app.add_middleware(KnownCallers, authenticator=gateway.authenticator, anonymous_scopes=scopes, paced=paced)
    if gateway.audit is not None:
        app.add_middleware(AuditedRequests, audit=gateway.audit, knows_callers=gateway.authenticator is not None)
    app.add_middleware(AccessLog, numbers=gateway.numbers)
    return app


async def _tell_api_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ApiError)
    request.state.ended = exc.code
    headers = exc.headers()
    if exc.status in (408, 413):
        # The rest of the body is not read.
        headers["connection"] = "close"
    return JSONResponse(exc.body(), exc.status, headers)


async def _tell_domain_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HotslotError)
    return await _tell_api_error(request, api_error(exc))


async def _tell_http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405:
        told = ApiError(405, "METHOD_NOT_ALLOWED", f"{request.method} is not served at this path")
    else:
        told = ApiError(exc.status_code, "UNKNOWN_PATH", "nothing is served at this path", kind="not_found_error")
    response = await _tell_api_error(request, told)
    response.headers.update(exc.headers or {})
    return response


async def _tell_bug(request: Request, exc: Exception) -> Response:
    """Any failure of our own: the server logs it with its traceback, the client hears that there was one."""
    text = "something failed here; the log has the reason"
    return await _tell_api_error(request, ApiError(500, "INTERNAL", text, kind="server_error"))
