"""Caller and least revision of a request: the caller by its API key where principals are known, else by a header.

The key is a token, as gRPC callers send one. The gateway calls as itself, and acts for the principal of the token.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway_service.errors import api_error
from gateway_service.paced_requests import PacedRequests
from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError, ScopeMissingError, TenantForbiddenError
from hotslot.formats.principals import CLIENT_SCOPES, Principal
from hotslot.formats.principals import Scope as PrincipalScope
from hotslot.ids import DEFAULT_TENANT, TenantId, parse_tenant
from hotslot.rpc.min_revision import noted_min_revision
from hotslot.rpc.security import AUTHORIZATION
from hotslot.rpc.stub_method import Metadata
from hotslot.rpc.tenant import PRINCIPAL_KEY, SCOPES_KEY, TENANT_KEY
from shared.identity.authenticator import Authenticator
from shared.identity.callers import tenant_for
from shared.identity.parties import network_of
from shared.telemetry import bind_log_context

KEYED = ("/v1/", "/tokenize", "/detokenize", "/ui/state")
"""Beginnings of the paths that a key is for, and that are charged; health and documents are for all."""
ENDED = "ended by"
"""Part of a request's state: the error that ends it, once its caller may no longer make it."""


@dataclass(frozen=True, slots=True)
class ActedFor:
    """Principal that the gateway acts for."""

    name: str
    scopes: frozenset[PrincipalScope]

    @property
    def metadata(self) -> Metadata:
        """Metadata that says so; what is beyond a client's scopes is not passed on."""
        own = self.scopes & CLIENT_SCOPES
        words = ",".join(scope.value for scope in PrincipalScope if scope in own)
        return ((PRINCIPAL_KEY, self.name), (SCOPES_KEY, words))


ACTED_FOR: ContextVar[ActedFor | None] = ContextVar("acted for", default=None)
"""Principal of the request that is being served; None where each caller is believed."""


class KnownCallers:
    """ASGI middleware that refuses requests of callers who are not known."""

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        anonymous_scopes: frozenset[PrincipalScope] = frozenset(),
        paced: PacedRequests | None = None,
    ) -> None:
        """`anonymous_scopes` are those of callers without a key, in the default tenant; none refuses them."""
        self._app = app
        self._paced = paced
        self._authenticator = authenticator
        self._anonymous = Principal("anonymous", frozenset({DEFAULT_TENANT}), anonymous_scopes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(KEYED):
            await self._app(scope, receive, send)
            return
        try:
            check = await self._admitted(scope)
        except HotslotError as exc:
            await _refuse(exc, scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None

        def end(error: HotslotError) -> None:
            scope["state"][ENDED] = error
            task.cancel()

        with self._authenticator.running.of(check, end):
            try:
                await self._app(scope, receive, send)
            except asyncio.CancelledError:
                # A generation tells its client by itself.
                if (error := scope["state"].get(ENDED)) is None or task.uncancel() or scope["state"].get("status"):
                    raise
                await _refuse(error, scope, receive, send)

    async def _admitted(self, scope: Scope) -> Callable[[], None]:
        """Know the caller of a request, which is none too many."""
        client = scope.get("client")
        where = f"address {network_of(client[0]) if client else 'unix'}"
        try:
            check = await self._known(scope)
        except HotslotError:
            if self._paced is not None:
                await self._paced.admit(where)
            raise
        if self._paced is not None:
            acted_for = ACTED_FOR.get()
            is_named = acted_for is not None and acted_for.name != self._anonymous.name
            await self._paced.admit(f"principal {acted_for.name}" if acted_for is not None and is_named else where)
        return check

    async def _known(self, scope: Scope) -> Callable[[], None]:
        """Know the caller of a request; what is returned raises once the caller may no longer make it."""
        headers = Headers(scope=scope)
        keys = headers.getlist(AUTHORIZATION)
        if len(keys) > 1:
            raise InvalidRequestError([FieldViolation(AUTHORIZATION, f"found {len(keys)} headers, expected one")])
        named, known = _named_tenant(headers), self._authenticator
        principal_now: Callable[[], Principal] = lambda: self._anonymous  # noqa: E731
        if keys or not self._anonymous.scopes:
            principal_now = partial(known.principal_of, await known.credential(keys[0] if keys else None))
        principal = principal_now()
        tenant = tenant_for(principal, named)
        scope["state"]["principal"] = principal.name
        scope["state"]["tenant"] = tenant
        bind_log_context(principal=principal.name)
        ACTED_FOR.set(ActedFor(principal.name, principal.scopes))

        def check() -> None:
            now = principal_now()
            if tenant_for(now, named) != tenant:
                raise TenantForbiddenError(f"tenant {tenant!r} is none of {now.name}'s any more")
            if lost := principal.scopes - now.scopes:
                raise ScopeMissingError(f"{now.name} has no more the scope {', '.join(each.value for each in lost)}")

        return check


async def _refuse(error: HotslotError, scope: Scope, receive: Receive, send: Send) -> None:
    told = api_error(error)
    scope["state"]["ended"] = told.code
    await JSONResponse(told.body(), told.status, told.headers())(scope, receive, send)


def tenant_of(connection: HTTPConnection) -> TenantId:
    """The calling tenant; raises InvalidRequestError for what is none."""
    known: TenantId | None = connection.scope.get("state", {}).get("tenant")
    if known is not None:
        return known
    named = _named_tenant(connection.headers)
    return DEFAULT_TENANT if named is None else parse_tenant(named)


def _named_tenant(headers: Headers) -> str | None:
    values = headers.getlist(TENANT_KEY)
    if len(values) > 1:
        raise InvalidRequestError([FieldViolation(TENANT_KEY, f"found {len(values)} headers, expected one")])
    return values[0] if values else None


def min_revision_of(connection: HTTPConnection) -> int:
    """Revision of the tenant's catalog that the request is served at, or at a later one; 0 where none is named.

    Raises InvalidRequestError for what is no revision.
    """
    return noted_min_revision(connection.headers.items())
