"""A store, two workers and a gateway as processes with mutual TLS and principals: who may do what, across all hops."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest

from hotslot import ChannelOptions, GenerationRequest, HotslotClient
from hotslot.clients.store import StoreClient
from hotslot.clients.worker import WorkerClient
from hotslot.contract.generation import AdapterSelection, Stop
from hotslot.errors import (
    AdapterNotFoundError,
    BlobNotFoundError,
    ForbiddenError,
    HotslotError,
    InvalidReferenceError,
    ScopeMissingError,
    TenantForbiddenError,
    TokenRevokedError,
    UnauthenticatedError,
)
from hotslot.formats.principals import CLIENT_SCOPES, Scope
from hotslot.ids import TenantId
from hotslot.local.authority import Authority
from hotslot.local.child_processes import free_port
from hotslot.rpc.security import ChannelSecurity
from shared.identity.authenticator import REVOCATION_S
from tests.support.certificates import Party, party
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.gateway_paths import PATHS
from tests.support.issuer import JwksServer, Key, signed, write_issuers
from tests.support.machine_pace import slowness, within
from tests.support.principals import Roster
from tests.support.stack import Stack
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.integration

ISSUER_KEY = Key("fleet")
STALENESS_S = 2.0
"""Default of HOTSLOT_STALENESS_S."""


@dataclass
class SecuredFleet:
    """The processes, and the credentials of their callers."""

    stack: Stack
    roster: Roster
    """Tokens that it has, by the names of their callers, may also be others' than the file's."""
    client: Party

    def security(self, name: str) -> ChannelSecurity:
        """A caller's own, by name; none has a token."""
        token = self.roster.tokens.get(name, "")
        return ChannelSecurity(self.client.bundle_file, self.client.cert_file, self.client.key_file, token=token)

    def options(self, name: str, tenant: str | None = None) -> ChannelOptions:
        named = TenantId(tenant) if tenant is not None else None
        return ChannelOptions(tenant=named, max_attempts=1, security=self.security(name))

    @property
    def store(self) -> str:
        assert self.stack.store is not None
        return self.stack.store.spec.endpoint

    @property
    def workers(self) -> list[str]:
        return [child.spec.endpoint for child in self.stack.workers]

    @property
    def gateway(self) -> str:
        return f"http://{self.stack.gateway}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredFleet]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "authority")
    roster = Roster(folder / "principals.json")
    roster.add("alice", CLIENT_SCOPES, ["acme"])
    roster.add("bob", CLIENT_SCOPES, ["umbrella"])
    roster.add("reader", [Scope.READ], ["acme"])
    roster.add("fleeting", CLIENT_SCOPES, ["acme"])
    roster.add("operator", [Scope.OPERATOR], [])
    roster.add("publisher", [Scope.PUBLISH], ["acme"])
    roster.add("service", [Scope.WORKER], ["acme"])
    roster.add("expired", CLIENT_SCOPES, ["acme"], expires_s=1)
    roster.add("revoked", CLIENT_SCOPES, ["acme"], revoked_s=1)
    roster.add("worker", [Scope.WORKER], ["*"])
    roster.add("gateway", [Scope.GATEWAY], ["*"])
    parties = {name: party(folder, name, authority) for name in ("store", "client")}
    # A worker is known by its certificate: it has no token.
    worker = parties["worker"] = party(folder, "worker", authority, uris=("spiffe://hotslot/worker",))
    roster.principals["worker"] = replace(
        roster.principals["worker"], certificates=frozenset({"spiffe://hotslot/worker"}), tokens=()
    )
    del roster.tokens["worker"]
    roster.write()

    def secured(one: Party) -> dict[str, str]:
        return {
            "tls_cert_file": str(one.cert_file),
            "tls_key_file": str(one.key_file),
            "tls_client_ca_file": str(one.bundle_file),
            "health_listen": f"127.0.0.1:{free_port()}",
            "principals_file": str(roster.path),
            "issuers_file": str(issuers),
        }

    token_file = folder / "gateway.token"
    token_file.write_text(roster.tokens["gateway"])
    with JwksServer(ISSUER_KEY).running() as keys, Stack(folder) as stack:
        issuers = write_issuers(folder / "issuers.json", keys.url)
        stack.start_store(**secured(parties["store"]), operator_tenants="default")
        for _ in range(2):
            stack.launch_echo_worker(
                **secured(worker), tls_ca_file=str(worker.bundle_file), lease_s="2", model="step 0.1"
            )
        for child in stack.workers:
            child.wait_ready(120)
        client = parties["client"]
        stack.start_gateway(
            tls_ca_file=str(client.bundle_file),
            tls_cert_file=str(client.cert_file),
            tls_key_file=str(client.key_file),
            token_file=str(token_file),
            principals_file=str(roster.path),
            issuers_file=str(issuers),
        )
        found = SecuredFleet(stack, roster, client)
        asyncio.run(publish(found, folder))
        yield found


async def publish(fleet: SecuredFleet, folder: Path) -> None:
    for name in ("alice", "bob"):
        async with StoreClient(fleet.store, fleet.options(name)) as store:
            deadline_s = time.monotonic() + 60
            while not [model async for model in store.list_base_models()]:
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.1)
            draft = adapter(seed=len(name), spec=echo_model().spec)
            draft.write(folder / name)
            await store.push(folder / name, f"{name}-bot", base_model=echo_model().spec.digest)


def ask(adapter_name: str) -> GenerationRequest:
    return GenerationRequest("hello", adapters=(AdapterSelection(adapter_name),))


async def test_a_principal_has_its_own_tenant_and_finds_nothing_of_another(fleet: SecuredFleet) -> None:
    async with HotslotClient(fleet.store, fleet.workers[0], options=fleet.options("alice")) as alice:
        assert [found.name async for found in alice.store.list_adapters()] == ["alice-bot"]
        assert (await alice.complete(ask("alice-bot"))).choices
        theirs = ask("bob-bot")
        for call in (alice.store.get("bob-bot"), alice.store.resolve("bob-bot"), alice.complete(theirs)):
            with pytest.raises(AdapterNotFoundError):
                await call
    async with StoreClient(fleet.store, fleet.options("alice", "umbrella")) as trying:
        with pytest.raises(TenantForbiddenError):
            await trying.get("bob-bot")


async def test_each_worker_is_reached_with_the_certificates_that_the_fleet_trusts(fleet: SecuredFleet) -> None:
    for endpoint in fleet.workers:
        async with HotslotClient(fleet.store, endpoint, route=False, options=fleet.options("alice")) as alice:
            assert (await alice.complete(ask("alice-bot"))).choices
        async with WorkerClient(endpoint, fleet.options("nobody")) as nobody:
            with pytest.raises(UnauthenticatedError):
                await nobody.model_info()


async def test_a_token_of_a_client_neither_acts_for_others_nor_as_a_service(fleet: SecuredFleet) -> None:
    claim = (("hotslot-principal", "root"), ("hotslot-scopes", "read,use,publish,admin,worker,operator"))
    options = replace(fleet.options("reader"), metadata=claim)
    async with StoreClient(fleet.store, options) as reader:
        assert [found.name async for found in reader.list_adapters()] == ["alice-bot"]
        with pytest.raises(ScopeMissingError):
            await reader.delete_adapter("alice-bot")
    async with WorkerClient(fleet.workers[0], fleet.options("alice")) as alice:
        with pytest.raises(ForbiddenError):
            await alice.drain()
    async with WorkerClient(fleet.workers[0], fleet.options("operator")) as operator:
        assert (await operator.status()).worker_id


async def test_a_revoked_token_is_refused_everywhere_within_the_bound(fleet: SecuredFleet) -> None:
    taken_s = 0.0

    async def until_refused(call: Callable[[], Awaitable[object]]) -> None:
        nonlocal taken_s
        async with asyncio.timeout(PATIENCE_S):
            while True:
                asked_s = time.monotonic()
                try:
                    await call()
                except TokenRevokedError:
                    return
                taken_s = asked_s
                await asyncio.sleep(0.05)

    options = fleet.options("fleeting")
    async with StoreClient(fleet.store, options) as store, WorkerClient(fleet.workers[1], options) as worker:
        await store.get("alice-bot")
        await worker.model_info()
        fleet.roster.change("fleeting", revoked_s=int(time.time()))
        began_s = time.monotonic()
        await asyncio.gather(until_refused(lambda: store.get("alice-bot")), until_refused(worker.model_info))
        assert taken_s - began_s < REVOCATION_S * slowness(), "the bound is for calls that begin"


async def test_the_gateway_takes_a_token_as_its_api_key_and_acts_for_its_principal(fleet: SecuredFleet) -> None:
    async with httpx2.AsyncClient(base_url=fleet.gateway, trust_env=False, timeout=60) as http:

        async def status(
            path: str, token: str | None, json: object = None, headers: dict[str, str] | None = None
        ) -> tuple[int, str]:
            own = {"authorization": f"Bearer {token}"} if token is not None else {}
            method = "GET" if json is None else "POST"
            answer = await http.request(method, path, headers={**own, **(headers or {})}, json=json)
            return answer.status_code, answer.text

        alice, reader = fleet.roster.tokens["alice"], fleet.roster.tokens["reader"]
        body = {"model": "alice-bot", "prompt": "hello", "max_tokens": 4}
        for token in (None, "sk-nothing", alice[:-1]):
            code, text = await status("/v1/models", token)
            assert (code, "UNAUTHENTICATED" in text) == (401, True)
            assert (await status("/v1/completions", token, json=body))[0] == 401
        assert (await status("/health", None))[0] == 200
        code, text = await status("/v1/models", alice)
        assert code == 200
        assert "alice-bot" in text
        assert "bob-bot" not in text
        assert (await status("/v1/completions", alice, json=body))[0] == 200
        assert (await status("/v1/completions", alice, json={**body, "model": "bob-bot"}))[0] == 404
        assert (await status("/v1/completions", reader, json=body))[0] == 403
        code, text = await status("/v1/completions", alice, json=body, headers={"hotslot-tenant": "umbrella"})
        assert (code, "TENANT_FORBIDDEN" in text) == (403, True)
        # A service's token is no key: what it may do is not HTTP's.
        assert (await status("/v1/completions", fleet.roster.tokens["gateway"], json=body))[0] == 403


async def test_every_path_of_the_gateway_is_for_those_alone_who_may(fleet: SecuredFleet) -> None:
    tokens = fleet.roster.tokens
    kinds: dict[str, tuple[str | None, dict[str, str], int, str]] = {
        "no token": (None, {}, 401, "UNAUTHENTICATED"),
        "malformed": ("hs1_x", {}, 401, "UNAUTHENTICATED"),
        "unknown": (tokens["alice"][:-1] + "!", {}, 401, "UNAUTHENTICATED"),
        "expired": (tokens["expired"], {}, 401, "TOKEN_EXPIRED"),
        "revoked": (tokens["revoked"], {}, 401, "TOKEN_REVOKED"),
        "web token: malformed": ("a.b.c", {}, 401, "UNAUTHENTICATED"),
        "web token: forged": (signed(Key("fleet")), {}, 401, "UNAUTHENTICATED"),
        "web token: expired": (signed(ISSUER_KEY, exp=1), {}, 401, "TOKEN_EXPIRED"),
        "web token: for another": (signed(ISSUER_KEY, aud="x"), {}, 401, "UNAUTHENTICATED"),
        "wrong tenant": (tokens["alice"], {"hotslot-tenant": "umbrella"}, 403, "TENANT_FORBIDDEN"),
        "wrong scope": (tokens["publisher"], {}, 403, "SCOPE_MISSING"),
        "web token: wrong scope": (signed(ISSUER_KEY, scope="publish"), {}, 403, "SCOPE_MISSING"),
        "worker's": (tokens["service"], {}, 403, "SCOPE_MISSING"),
        "gateway's": (tokens["gateway"], {}, 403, "SCOPE_MISSING"),
        "claims to act": (
            tokens["publisher"],
            {"hotslot-principal": "alice", "hotslot-scopes": "read,use,admin"},
            403,
            "SCOPE_MISSING",
        ),
        "right": (tokens["alice"], {}, 200, ""),
        "web token: right": (signed(ISSUER_KEY, scope="read use"), {}, 200, ""),
    }
    async with httpx2.AsyncClient(base_url=fleet.gateway, trust_env=False, timeout=60) as http:
        for kind, (token, more, expected, code) in kinds.items():
            own = {"authorization": f"Bearer {token}"} if token is not None else {}
            for (method, path), body in PATHS.items():
                answer = await http.request(
                    method, path.replace("{model:path}", "alice-bot"), headers={**own, **more}, json=body
                )
                is_off = "lora_adapter" in path and expected != 401 and code != "TENANT_FORBIDDEN"
                wanted = (403, "FORBIDDEN") if is_off else (expected, code)
                assert answer.status_code == wanted[0], (kind, path, answer.text)
                assert wanted[1] in answer.text, (kind, path, answer.text)


async def test_a_json_web_token_is_taken_across_all_hops(fleet: SecuredFleet) -> None:
    fleet.roster.tokens["web"] = token = signed(ISSUER_KEY, scope="read use")
    async with HotslotClient(fleet.store, fleet.workers[0], options=fleet.options("web")) as client:
        assert [found.name async for found in client.store.list_adapters()] == ["alice-bot"]
        assert (await client.complete(ask("alice-bot"))).choices
        with pytest.raises(ScopeMissingError):
            await client.store.delete_adapter("alice-bot")
    body = {"model": "alice-bot", "prompt": "hello", "max_tokens": 4}
    async with httpx2.AsyncClient(base_url=fleet.gateway, trust_env=False, timeout=60) as http:
        for key, expected in ((token, 200), (signed(Key("fleet")), 401), (signed(ISSUER_KEY, exp=1), 401)):
            answer = await http.post("/v1/completions", headers={"authorization": f"Bearer {key}"}, json=body)
            assert answer.status_code == expected, answer.text


RUNNING_S = 5.0
"""Longest time that a running call has after a revocation, as docs/security.md says."""


async def test_what_runs_ends_in_time_when_its_token_is_revoked(fleet: SecuredFleet) -> None:
    """A watch, a generation on a worker, a forwarded one, and one through the gateway."""
    fleet.roster.add("leaving", CLIENT_SCOPES, ["acme"])
    options = fleet.options("leaving")
    endless = replace(ask("alice-bot"), prompt="endless", stop=Stop(max_tokens=480))
    ended: dict[str, str] = {}
    began = 0

    async def watch() -> None:
        nonlocal began
        async with StoreClient(fleet.store, options) as store:
            began += 1
            async for _ in store.watch():
                pass

    async def generate(worker: str) -> None:
        nonlocal began
        async with HotslotClient(fleet.store, worker, route=False, options=options) as client:
            seen = False
            async for _ in client.generate(endless):
                began, seen = began + (not seen), True

    async def through_gateway() -> None:
        nonlocal began
        body = {"model": "alice-bot", "prompt": "endless", "max_tokens": 480, "stream": True}
        headers = {"authorization": f"Bearer {fleet.roster.tokens['leaving']}"}
        async with (
            httpx2.AsyncClient(base_url=fleet.gateway, trust_env=False, timeout=60) as http,
            http.stream("POST", "/v1/completions", headers=headers, json=body) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            began += 1
            last = ""
            async for line in answer.aiter_lines():
                last = line or last
            raise TokenRevokedError(last) if "TOKEN_REVOKED" in last else AssertionError(last[-200:])

    async def until_revoked(name: str, running: Awaitable[None]) -> None:
        try:
            await running
        except TokenRevokedError:
            ended[name] = "revoked"

    parts = {"watch": watch(), "gateway": through_gateway(), **{one: generate(one) for one in fleet.workers}}
    deadline_s = time.monotonic() + 60
    tasks: list[asyncio.Task[None]] = []
    while not tasks:
        try:
            async with StoreClient(fleet.store, options) as store:
                await store.get("alice-bot")
            await asyncio.sleep(REVOCATION_S)  # by then the workers and the gateway know it, too
            tasks = [asyncio.create_task(until_revoked(name, part)) for name, part in parts.items()]
        except UnauthenticatedError:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.2)
    while began < len(parts):
        assert time.monotonic() < deadline_s
        assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
        await asyncio.sleep(0.05)
    with within(RUNNING_S):
        fleet.roster.change("leaving", revoked_s=int(time.time()))
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
    assert ended == dict.fromkeys(parts, "revoked")


async def test_what_is_shared_is_used_across_all_hops_and_refused_in_time_once_it_is_not(
    fleet: SecuredFleet, tmp_path: Path
) -> None:
    bobs = {"authorization": f"Bearer {fleet.roster.tokens['bob']}"}

    async def of_gateway(http: httpx2.AsyncClient) -> tuple[int, bool]:
        body = {"model": "acme~alice-bot", "prompt": "hello", "max_tokens": 4}
        answer = await http.post("/v1/completions", headers=bobs, json=body)
        listed = await http.get("/v1/models", headers=bobs)
        return answer.status_code, "acme~alice-bot" in listed.text

    async with (
        StoreClient(fleet.store, fleet.options("alice")) as alice,
        HotslotClient(fleet.store, fleet.workers[0], options=fleet.options("bob")) as bob,
        WorkerClient(fleet.workers[1], fleet.options("bob")) as worker,
        httpx2.AsyncClient(base_url=fleet.gateway, trust_env=False, timeout=60) as http,
    ):
        assert await of_gateway(http) == (404, False)
        shared = await alice.share("alice-bot", ["umbrella"])
        assert shared.tenants == ("umbrella",)
        assert [each.adapter async for each in alice.list_shares()] == ["alice-bot"]
        assert [each.name async for each in bob.store.list_shared_adapters()] == ["acme~alice-bot"]
        assert [each.name async for each in bob.store.list_adapters()] == ["bob-bot"]
        version = await bob.store.pull("acme~alice-bot", tmp_path / "pulled")
        assert (tmp_path / "pulled" / "adapter_config.json").is_file()
        assert (await bob.complete(ask("acme~alice-bot"))).started.adapters[0].digest == version.digest
        assert [event async for event in worker.generate(ask("acme~alice-bot"))]
        assert [event async for event in worker.generate(ask(f"acme~alice-bot@{version.digest}"))]
        assert await of_gateway(http) == (200, True)
        with pytest.raises(InvalidReferenceError):
            await bob.store.push(tmp_path / "pulled", "acme~alice-bot", base_model=echo_model().spec.digest)
        await alice.unshare("alice-bot")
        began_s = taken_s = time.monotonic()
        refused: set[str] = set()
        while len(refused) < 3:
            assert time.monotonic() - began_s < PATIENCE_S, refused
            for name, reference in (("tag", "acme~alice-bot"), ("digest", f"acme~alice-bot@{version.digest}")):
                asked_s = time.monotonic()
                try:
                    async for _ in worker.generate(ask(reference)):
                        pass
                except AdapterNotFoundError:
                    refused.add(name)
                else:
                    taken_s = asked_s
            asked_s = time.monotonic()
            if await of_gateway(http) == (404, False):
                refused.add("gateway")
            else:
                taken_s = asked_s
        assert taken_s - began_s < STALENESS_S * slowness(), "the bound is for requests that begin"
        for call in (bob.store.resolve("acme~alice-bot"), bob.store.pull("acme~alice-bot", tmp_path / "again")):
            with pytest.raises(AdapterNotFoundError):
                await call
        with pytest.raises(BlobNotFoundError):
            await bob.store.download_blob(version.weights_digest, tmp_path / "blob")
        assert (await alice.resolve("alice-bot")).version.digest == version.digest


def test_no_token_is_in_any_log(fleet: SecuredFleet) -> None:
    # The secret part of a token of ours, and the whole of one that has other parts, such as a signed one.
    secrets = [token.split("_", 2)[-1] for token in fleet.roster.tokens.values() if token]
    logs = list(fleet.stack.folder.glob("*.log"))
    assert len(logs) == 4
    for log in logs:
        text = log.read_text(errors="replace")
        assert text
        assert not [secret for secret in secrets if secret in text], log.name
        assert "scrypt$" not in text


async def test_what_has_no_certificate_hears_nothing(fleet: SecuredFleet) -> None:
    bare = ChannelOptions(max_attempts=1, security=ChannelSecurity(fleet.client.bundle_file))
    for options in (bare, ChannelOptions(max_attempts=1)):
        async with StoreClient(fleet.store, options) as store:
            with pytest.raises(HotslotError, match="cannot be reached"):
                await store.get("alice-bot")
