"""Every RPC of the protos, called with every kind of credential: what is refused is refused before anything runs."""

import importlib
import pkgutil
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

import hotslot.pb
from hotslot.errors import (
    HotslotError,
    NotFoundError,
    ScopeMissingError,
    TenantForbiddenError,
    TokenExpiredError,
    TokenRevokedError,
    UnauthenticatedError,
)
from hotslot.formats.principals import Scope
from hotslot.rpc.status import from_rpc_error
from hotslot.rpc.tenant import tenant_of
from shared.identity.authenticator import Authenticator
from shared.identity.needs import NEEDS, check_needs
from shared.server.grpc_server import ServerOptions, Service, serve
from shared.transport_settings import Transport
from tests.support.issuer import JwksServer, Key, assembled, claims, signed, write_issuers
from tests.support.principals import Roster, bearer

PACED = ServerOptions(grace_s=0.2, transport=Transport(max_calls_per_s=1e6))
"""As servers are by default, whose callers have a pace; the table makes many calls."""
MAY = {
    # scope: services and their methods, written down apart from the table of the product
    "read": """AdapterStoreService GetAdapter ListAdapters ListVersions ResolveAdapter GetAdapterPolicy
        ListAdapterPolicies GetQuota GetStoreStatus WatchAdapters ListBaseModels ListShares ListSharedAdapters;
        BlobService ReadBlob; PlacementService PickWorkers
        ListWorkers ListPlacements WatchPlacements; ExternalScaler IsActive StreamIsActive GetMetricSpec GetMetrics;
        InferenceService GetModelInfo; AdapterControlService ListAdapters
        GetWorkerStatus""",
    "use": """AdapterStoreService GetQuota; PlacementService PickWorkers ListWorkers; InferenceService Generate Complete
        CountTokens Detokenize GetModelInfo; AdapterControlService LoadAdapter""",
    "publish": """AdapterStoreService ImportAdapter ValidateAdapter CreateVersion PublishVersion
        SetTag DeleteTag GetQuota ListBaseModels
        FindBaseModels; BlobService WriteBlob GetWriteStatus FindMissingBlobs""",
    "admin": """AdapterStoreService GetQuota DeleteAdapter UndeleteAdapter DeleteVersion PruneVersions
        SetAdapterPolicy DeleteAdapterPolicy ShareAdapter UnshareAdapter;
        AdapterControlService UnloadAdapter PinAdapter UnpinAdapter SetDefaultAdapters EnableAdapters
        DisableAdapters""",
    "worker": """AdapterStoreService ResolveAdapter ListPinnedVersions WatchAdapters RegisterBaseModel ListBaseModels
        IssueEpoch; BlobService ReadBlob; CompiledCodeService ReadCompiledCode WriteCompiledCode; FleetService
        IssueEpoch ListPinnedVersions ReadCompiledCode WriteCompiledCode; InferenceService Generate""",
    "gateway": "PlacementService ListWorkers; InferenceService GetModelInfo",
    "operator": """AdapterStoreService GetStoreStatus CollectGarbage RegisterBaseModel DeleteBaseModel ListBaseModels
        FindBaseModels AddBaseModelAlias; PlacementService ListWorkers;
        ExternalScaler IsActive StreamIsActive GetMetricSpec GetMetrics;
        InferenceService GetModelInfo; AdapterControlService
        DrainWorker UndrainWorker GetWorkerStatus""",
}
MAY = {scope: f"{text}; AdapterStoreService GetCaller" for scope, text in MAY.items()}
OF_NO_TENANT = """AdapterStoreService GetCaller GetStoreStatus CollectGarbage; AdapterStoreService ListPinnedVersions
    RegisterBaseModel DeleteBaseModel ListBaseModels FindBaseModels
    AddBaseModelAlias IssueEpoch; FleetService IssueEpoch ListPinnedVersions; PlacementService ListWorkers;
    ExternalScaler IsActive StreamIsActive GetMetricSpec GetMetrics;
    InferenceService GetModelInfo; AdapterControlService DrainWorker UndrainWorker GetWorkerStatus"""


def every_service() -> list[ServiceDescriptor]:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(hotslot.pb.__path__, "hotslot.pb.")
        if found.name.endswith("_pb2")
    ]
    return [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]


SERVICES = every_service()
METHODS = [method for service in SERVICES for method in service.methods]


def named(text: str) -> set[str]:
    """Service.Method of a text of the tables above."""
    return {f"{words[0]}.{method}" for part in text.split(";") for words in [part.split()] for method in words[1:]}


def name_of(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def scopes_of(method: MethodDescriptor) -> set[Scope]:
    return {Scope(scope) for scope, text in MAY.items() if name_of(method) in named(text)}


ISSUER_KEY = Key("matrix")


def web_token(scopes: Iterable[Scope], **changes: Any) -> str:
    """A JSON Web Token of acme with scopes."""
    return signed(ISSUER_KEY, scope=" ".join(scope.value for scope in scopes), **changes)


class Ran(NotFoundError):
    """A handler ran: what it was called for is not there."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"ran for {tenant}", tenant)


def recording(service: ServiceDescriptor, ran: list[tuple[str, str]]) -> Service:
    """A service whose handlers do nothing but say that they ran."""

    def handler(method: MethodDescriptor) -> Any:
        async def run(request: Any, context: Any) -> Any:
            ran.append((path_of(method), tenant_of(context)))
            raise Ran(tenant_of(context))

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await run(request, context)
            yield None

        shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        make = getattr(grpc, f"{shape}_rpc_method_handler")
        request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        behaviour = stream if method.server_streaming else run
        return make(behaviour, request_class.FromString, response_class.SerializeToString)

    handlers = {method.name: handler(method) for method in service.methods}

    def add(servicer: object, server: Any) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    return Service(service.full_name, add, object())


class Served:
    """All services of the protos behind one authenticator."""

    def __init__(self, roster: Roster, ran: list[tuple[str, str]], channel: grpc.aio.Channel) -> None:
        self.roster, self.ran, self.channel = roster, ran, channel

    async def call(self, method: MethodDescriptor, *metadata: tuple[str, str]) -> HotslotError:
        """The error that the call ends with."""
        shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        stub = getattr(self.channel, shape)(path_of(method))
        call = stub(iter([b""]) if method.client_streaming else b"", metadata=metadata, timeout=60)
        try:
            if method.server_streaming:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as exc:
            return from_rpc_error(exc)
        raise AssertionError("no handler here succeeds")


@asynccontextmanager
async def everything_served(tmp_path: Path) -> AsyncIterator[Served]:
    roster, ran = Roster(tmp_path / "principals.json"), list[tuple[str, str]]()
    now_s = int(time.time())
    for scope in Scope:
        roster.add(f"only-{scope.value}", [scope])
        roster.add(f"all-but-{scope.value}", set(Scope) - {scope})
    roster.add("everything", Scope)
    roster.add("expired", Scope, expires_s=now_s - 1)
    roster.add("revoked", Scope, revoked_s=now_s - 1)
    roster.add("nothing", [])
    stack = ExitStack()
    keys = stack.enter_context(JwksServer(ISSUER_KEY).running())
    every = [scope.value for scope in Scope]
    issuers = write_issuers(tmp_path / "issuers.json", keys.url, tenants=["acme"], scopes=every, revoked=["stolen"])
    authenticator = Authenticator(roster.path, issuers_path=issuers)
    services = [recording(service, ran) for service in SERVICES]
    async with (
        serve(services, PACED, observers=[], authenticator=authenticator) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield Served(roster, ran, channel)
    authenticator.close()
    stack.close()


def test_every_rpc_of_the_protos_has_a_row_and_a_line_in_this_test() -> None:
    assert {path_of(method) for method in METHODS} == set(NEEDS)
    assert {name_of(method) for method in METHODS} == {name for text in MAY.values() for name in named(text)}
    assert named(OF_NO_TENANT) <= {name_of(method) for method in METHODS}


def test_a_service_with_an_rpc_without_a_row_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(NEEDS, "/hotslot.worker.v1.InferenceService/Generate")
    with pytest.raises(LookupError, match="Generate"):
        check_needs("hotslot.worker.v1.InferenceService")


async def test_who_is_not_known_may_call_nothing(tmp_path: Path) -> None:
    async with everything_served(tmp_path) as served:
        token = served.roster.tokens["everything"]
        forged = token[:-43] + secrets.token_urlsafe(32)
        refused: dict[str, tuple[list[tuple[str, str]], type[HotslotError]]] = {
            "none": ([], UnauthenticatedError),
            "no bearer": ([("authorization", "Basic eDp5")], UnauthenticatedError),
            "empty": ([("authorization", "")], UnauthenticatedError),
            "malformed": ([bearer("hs1_x")], UnauthenticatedError),
            "no token of ours": ([bearer("sk-1234")], UnauthenticatedError),
            "unknown id": ([bearer("hs1_0000000000000000_" + token[-43:])], UnauthenticatedError),
            "forged": ([bearer(forged)], UnauthenticatedError),
            "cut": ([bearer(token[:-1])], UnauthenticatedError),
            "twice": ([bearer(token), bearer(token)], HotslotError),
            "expired": ([bearer(served.roster.tokens["expired"])], TokenExpiredError),
            "web token: malformed": ([bearer("a.b.c")], UnauthenticatedError),
            "web token: algorithm none": ([bearer(assembled({"alg": "none"}, claims()))], UnauthenticatedError),
            "web token: forged": ([bearer(signed(Key(ISSUER_KEY.kid)))], UnauthenticatedError),
            "web token: for another": ([bearer(web_token(Scope, aud="billing"))], UnauthenticatedError),
            "web token: expired": ([bearer(web_token(Scope, exp=time.time() - 3600))], TokenExpiredError),
            "web token: revoked": ([bearer(web_token(Scope, jti="stolen"))], TokenRevokedError),
            "web token: of none of ours": ([bearer(web_token(Scope, iss="https://x"))], UnauthenticatedError),
            "revoked": ([bearer(served.roster.tokens["revoked"])], TokenRevokedError),
            "says whom it acts for": ([("hotslot-principal", "x"), ("hotslot-scopes", "read")], UnauthenticatedError),
        }
        for method in METHODS:
            for what, (metadata, expected) in refused.items():
                error = await served.call(method, *metadata)
                assert isinstance(error, expected), (name_of(method), what, error)
                assert token[-43:] not in error.message
        assert served.ran == []


TOKENS: dict[str, Callable[[Served, str], tuple[str, str]]] = {
    "of the file": lambda served, name: bearer(served.roster.tokens[name]),
    "of an issuer": lambda served, name: bearer(web_token(served.roster.principals[name].scopes)),
}


@pytest.mark.parametrize("kind", TOKENS)
async def test_a_principal_may_call_what_its_scopes_allow_and_nothing_else(kind: str, tmp_path: Path) -> None:
    async with everything_served(tmp_path) as served:
        token = partial(TOKENS[kind], served)
        for method in METHODS:
            allowed = scopes_of(method)
            for scope in Scope:
                served.ran.clear()
                error = await served.call(method, token(f"only-{scope.value}"))
                if scope in allowed:
                    assert isinstance(error, NotFoundError), (name_of(method), scope, error)
                    assert served.ran == [(path_of(method), "acme")]
                else:
                    assert isinstance(error, ScopeMissingError), (name_of(method), scope, error)
                    assert served.ran == []
            if len(allowed) == 1:
                (scope,) = allowed
                error = await served.call(method, token(f"all-but-{scope.value}"))
                assert isinstance(error, ScopeMissingError), name_of(method)
            error = await served.call(method, token("nothing"))
            assert isinstance(error, ScopeMissingError), name_of(method)


@pytest.mark.parametrize("kind", TOKENS)
async def test_a_tenant_is_named_by_its_own_principals_alone(kind: str, tmp_path: Path) -> None:
    async with everything_served(tmp_path) as served:
        everything = TOKENS[kind](served, "everything")
        for method in METHODS:
            served.ran.clear()
            error = await served.call(method, everything, ("hotslot-tenant", "umbrella"))
            if name_of(method) in named(OF_NO_TENANT):
                # Not about a tenant; and where a handler asks, it is not the one that was named.
                assert isinstance(error, NotFoundError), (name_of(method), error)
                assert served.ran == [(path_of(method), "acme")]
            else:
                assert isinstance(error, TenantForbiddenError), (name_of(method), error)
                assert served.ran == []
            error = await served.call(method, everything, ("hotslot-tenant", "acme"))
            assert isinstance(error, NotFoundError), (name_of(method), error)


async def test_a_gateway_acts_within_its_own_tenants_and_with_the_scopes_of_clients_alone(tmp_path: Path) -> None:
    async with everything_served(tmp_path) as served:
        alice = ("hotslot-principal", "alice")
        gateway, client = (bearer(served.roster.tokens[name]) for name in ("only-gateway", "all-but-gateway"))
        for method in METHODS:
            for scope in Scope:
                served.ran.clear()
                error = await served.call(method, gateway, alice, ("hotslot-scopes", scope.value))
                is_allowed = scope in scopes_of(method) - {Scope.WORKER, Scope.GATEWAY, Scope.OPERATOR}
                assert isinstance(error, NotFoundError if is_allowed else ScopeMissingError), (name_of(method), scope)
            if name_of(method) not in named(OF_NO_TENANT):
                every = ("hotslot-scopes", "read,use,publish,admin")
                error = await served.call(method, gateway, alice, every, ("hotslot-tenant", "umbrella"))
                assert isinstance(error, (TenantForbiddenError, ScopeMissingError)), name_of(method)
        # Who is no gateway acts for nobody, whatever it says.
        (generate,) = [method for method in METHODS if name_of(method) == "InferenceService.Generate"]
        (drain,) = [method for method in METHODS if name_of(method) == "AdapterControlService.DrainWorker"]
        for method in (generate, drain):
            assert isinstance(
                await served.call(method, client, ("hotslot-principal", "x"), ("hotslot-scopes", "")), NotFoundError
            )
