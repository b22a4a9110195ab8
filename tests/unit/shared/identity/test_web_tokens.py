"""JSON Web Tokens: a genuine one makes a principal, all else is refused, and keys change without a pause."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import (
    HotslotError,
    QuotaExceededError,
    TokenExpiredError,
    TokenRevokedError,
    UnauthenticatedError,
    UnavailableError,
)
from hotslot.formats.principals import Principal, Scope
from hotslot.local.authority import Authority
from hotslot.rpc.tls_files import LOOK_EVERY_S
from shared.identity import issuer_keys
from shared.identity.authenticator import REVOCATION_S, Authenticator
from shared.identity.issuer_keys import FAILED_S
from shared.identity.key_set import MAX_SET_BYTES
from shared.identity.web_tokens import MAX_VERIFYING
from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    JwksServer,
    Key,
    assembled,
    claims,
    ed25519_key,
    rsa_key,
    signed,
    write_issuers,
)

KEY = Key("first")
RSA_KEY = rsa_key("rsa")
STRANGER = Key("first")
"""Another's key, under the name of ours."""


def now_s() -> int:
    return int(time.time())


@pytest.fixture
def server() -> Iterator[JwksServer]:
    with JwksServer(KEY, RSA_KEY).running() as server:
        yield server


@asynccontextmanager
async def knowing(path: Path) -> AsyncIterator[Authenticator]:
    known = Authenticator(None, issuers_path=path)
    try:
        yield known
    finally:
        known.close()


async def refusal(known: Authenticator, token: str) -> HotslotError:
    try:
        found = await known.principal(f"Bearer {token}")
    except HotslotError as exc:
        return exc
    raise AssertionError(f"taken as {found.name}")


async def refused_as(known: Authenticator, token: str, kind: type[HotslotError]) -> bool:
    """Tell whether it is refused so by now."""
    try:
        await known.principal(f"Bearer {token}")
    except kind:
        return True
    return False


async def test_a_genuine_token_is_the_principal_that_its_claims_say(tmp_path: Path, server: JwksServer) -> None:
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url)) as known:
        found = await known.principal(f"Bearer {signed(KEY)}")
        assert found == Principal("corp:alice", frozenset(["acme"]), frozenset([Scope.READ, Scope.USE]))
        assert (await known.principal(f"Bearer {signed(RSA_KEY, sub='bob')}")).name == "corp:bob"
        unnamed = jwt.encode(claims(), RSA_KEY.private, "RS256")
        assert (await known.principal(f"Bearer {unnamed}")).name == "corp:alice"
        assert server.num_reads == 1


def _changed(token: str, part: int) -> str:
    parts = token.split(".")
    parts[part] = parts[part][:-2] + ("AA" if parts[part][-2:] != "AA" else "BB")
    return ".".join(parts)


def _hmac_with_public_key() -> str:
    pem = RSA_KEY.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    unsigned = assembled({"alg": "HS256", "typ": "JWT", "kid": "rsa"}, claims()).rpartition(".")[0]
    code = hmac.new(pem, unsigned.encode(), hashlib.sha256).digest()
    return f"{unsigned}.{base64.urlsafe_b64encode(code).decode().rstrip('=')}"


def _own_key_in_header() -> str:
    return signed(STRANGER, {"jwk": STRANGER.public_jwk(), "kid": "other"})


REFUSED: dict[str, tuple[Callable[[], str], type[HotslotError]]] = {
    "no parts": (lambda: "a.b.c", UnauthenticatedError),
    "empty parts": (lambda: "..", UnauthenticatedError),
    "no JSON": (lambda: assembled({"alg": "ES256"}, b"no"), UnauthenticatedError),
    "a list of claims": (lambda: assembled({"alg": "ES256", "kid": "first"}, []), UnauthenticatedError),
    "deep claims": (lambda: assembled({"alg": "ES256"}, b"[" * 9000), UnauthenticatedError),
    "without an algorithm": (lambda: assembled({"typ": "JWT"}, claims()), UnauthenticatedError),
    "algorithm none": (lambda: assembled({"alg": "none", "kid": "first"}, claims()), UnauthenticatedError),
    "algorithm None": (lambda: assembled({"alg": "None", "kid": "first"}, claims()), UnauthenticatedError),
    "algorithm of a number": (lambda: assembled({"alg": 1, "kid": "first"}, claims()), UnauthenticatedError),
    "kid of a list": (lambda: assembled({"alg": "ES256", "kid": ["first"]}, claims()), UnauthenticatedError),
    "a public key as a secret": (_hmac_with_public_key, UnauthenticatedError),
    "another algorithm than the key's": (
        lambda: jwt.encode(claims(), RSA_KEY.private, "PS256", headers={"kid": "rsa"}),
        UnauthenticatedError,
    ),
    "signed by another": (lambda: signed(STRANGER), UnauthenticatedError),
    "with its own key": (_own_key_in_header, UnauthenticatedError),
    "no signature": (lambda: signed(KEY).rpartition(".")[0] + ".", UnauthenticatedError),
    "changed claims": (lambda: _changed(signed(KEY), 1), UnauthenticatedError),
    "changed signature": (lambda: _changed(signed(KEY), 2), UnauthenticatedError),
    "unknown kid": (lambda: signed(KEY, {"kid": "invented"}), UnauthenticatedError),
    "critical extension": (
        lambda: assembled({"alg": "ES256", "kid": "first", "crit": ["exp"]}, claims()),
        UnauthenticatedError,
    ),
    "a logout token": (lambda: signed(KEY, {"typ": "logout+jwt"}), UnauthenticatedError),
    "another issuer": (lambda: signed(KEY, iss="https://other.test"), UnauthenticatedError),
    "issuer with a slash": (lambda: signed(KEY, iss=ISSUER + "/"), UnauthenticatedError),
    "no issuer": (lambda: signed(KEY, iss=None), UnauthenticatedError),
    "another audience": (lambda: signed(KEY, aud="billing"), UnauthenticatedError),
    "audiences without ours": (lambda: signed(KEY, aud=["billing", "hotslot2"]), UnauthenticatedError),
    "no audience": (lambda: signed(KEY, aud=None), UnauthenticatedError),
    "no expiry": (lambda: signed(KEY, exp=None), UnauthenticatedError),
    "expiry as a text": (lambda: signed(KEY, exp=str(now_s() + 600)), UnauthenticatedError),
    "expiry of no number": (lambda: signed(KEY, exp=float("nan")), UnauthenticatedError),
    "endless expiry": (lambda: signed(KEY, exp=float("inf")), UnauthenticatedError),
    "expiry true": (lambda: signed(KEY, exp=True), UnauthenticatedError),
    "expired": (lambda: signed(KEY, exp=now_s() - 3600, iat=now_s() - 7200), TokenExpiredError),
    "not valid yet": (lambda: signed(KEY, nbf=now_s() + 3600), UnauthenticatedError),
    "issued later": (lambda: signed(KEY, iat=now_s() + 3600), UnauthenticatedError),
    "revoked": (lambda: signed(KEY, jti="stolen"), TokenRevokedError),
    "jti of a list": (lambda: signed(KEY, jti=["x"]), UnauthenticatedError),
    "no subject": (lambda: signed(KEY, sub=None), UnauthenticatedError),
    "a subject of several lines": (lambda: signed(KEY, sub="alice\r\nhotslot-scopes: admin"), UnauthenticatedError),
    "a subject that is too long": (lambda: signed(KEY, sub="a" * 257), UnauthenticatedError),
    "a subject of no ASCII": (lambda: signed(KEY, sub="älice"), UnauthenticatedError),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_is_not_genuine_or_not_for_us_is_refused(kind: str, tmp_path: Path, server: JwksServer) -> None:
    make, expected = REFUSED[kind]
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url, revoked=["stolen"])) as known:
        token = make()
        error = await refusal(known, token)
        assert type(error) is expected, error
        assert all(part not in error.message for part in token.split(".") if len(part) > 3)
        assert (await known.principal(f"Bearer {signed(KEY)}")).name == "corp:alice"


@given(st.lists(st.text("abcXYZ019-_=", max_size=30), min_size=3, max_size=3).map(".".join) | st.text(max_size=60))
def test_no_text_is_a_token_by_chance(text: str) -> None:
    async def ask() -> None:
        known = Authenticator(None)
        try:
            assert isinstance(await refusal(known, text), UnauthenticatedError)
        finally:
            known.close()

    asyncio.run(ask())


MAPPED: dict[str, tuple[dict[str, Any], dict[str, Any], set[str], set[Scope]]] = {
    # settings of the issuer, claims, tenants, scopes
    "tenants as a text": ({}, {"tenants": "acme"}, {"acme"}, {Scope.READ, Scope.USE}),
    "tenants beyond the issuer's": ({}, {"tenants": ["acme", "else", "*"]}, {"acme"}, {Scope.READ, Scope.USE}),
    "no tenants": ({}, {"tenants": None}, set(), {Scope.READ, Scope.USE}),
    "every tenant": (
        {"tenants": ["*"]},
        {"tenants": ["acme", "else", "No!"]},
        {"acme", "else"},
        {Scope.READ, Scope.USE},
    ),
    "all tenants": ({"tenants": ["*"]}, {"tenants": ["*"]}, {"*"}, {Scope.READ, Scope.USE}),
    "tenants of another claim": (
        {"tenants_claim": "https://acme.test/tenants"},
        {"https://acme.test/tenants": ["umbrella"]},
        {"umbrella"},
        {Scope.READ, Scope.USE},
    ),
    "all of the issuer's": (
        {"tenants": ["acme"], "tenants_claim": "", "scopes_claim": "", "scopes": ["worker"]},
        {"tenants": "umbrella"},
        {"acme"},
        {Scope.WORKER},
    ),
    "scopes within objects": (
        {"scopes_claim": "realm_access.roles", "scope_prefix": "hotslot:"},
        {"realm_access": {"roles": ["hotslot:read", "hotslot:admin", "use", "hotslot:fly"]}},
        {"acme"},
        {Scope.READ, Scope.ADMIN},
    ),
    "scopes beyond the issuer's": ({}, {"scope": "read operator worker gateway"}, {"acme"}, {Scope.READ}),
    "no scopes": ({}, {"scope": {"read": True}}, {"acme"}, set()),
}


@pytest.mark.parametrize("kind", MAPPED)
async def test_claims_say_tenants_and_scopes_within_the_bounds_of_their_issuer(
    kind: str, tmp_path: Path, server: JwksServer
) -> None:
    settings, changes, tenants, scopes = MAPPED[kind]
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url, **settings)) as known:
        found = await known.principal(f"Bearer {signed(KEY, **changes)}")
        assert (set(found.tenants), set(found.scopes)) == (tenants, scopes)


async def test_clocks_may_differ_by_the_leeway_and_no_more(tmp_path: Path, server: JwksServer) -> None:
    now_s = int(time.time())
    borne: list[dict[str, Any]] = [{"exp": now_s - 20}, {"nbf": now_s + 40}, {"iat": now_s + 40}]
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url, leeway_s=60)) as known:
        for changes in borne:
            token = signed(KEY, **{"iat": now_s - 100, **changes})
            await known.principal(f"Bearer {token}")
        assert isinstance(await refusal(known, signed(KEY, iat=now_s - 900, exp=now_s - 90)), TokenExpiredError)


@pytest.mark.parametrize("key", [rsa_key("k", "PS512"), ed25519_key("k")], ids=lambda key: key.algorithm)
async def test_each_family_of_keys_verifies(key: Key, tmp_path: Path, server: JwksServer) -> None:
    server.publish(key)
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url)) as known:
        assert (await known.principal(f"Bearer {signed(key)}")).name == "corp:alice"
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url, algorithms=["ES256"])) as known:
        assert isinstance(await refusal(known, signed(key)), HotslotError)


async def test_a_new_key_is_taken_at_once_and_the_old_one_no_more(
    tmp_path: Path, server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "UNKNOWN_KEY_S", 0.0)
    new, header = Key("second"), f"Bearer {signed(KEY)}"
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url)) as known:
        assert (await known.principal(header)).name == "corp:alice"
        server.publish(KEY, new)
        assert (await known.principal(f"Bearer {signed(new)}")).name == "corp:alice"
        assert (await known.principal(header)).name == "corp:alice"
        server.publish(new)
        await refusal(known, signed(Key("third")))
        assert isinstance(await refusal(known, header.partition(" ")[2]), UnauthenticatedError)
        assert (await known.principal(f"Bearer {signed(new)}")).name == "corp:alice"


async def test_invented_keys_cause_one_reading_however_many_come(tmp_path: Path, server: JwksServer) -> None:
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url)) as known:
        await known.principal(f"Bearer {signed(KEY)}")
        assert server.num_reads == 1
        server.delay_s = 0.2
        flood = [refusal(known, signed(STRANGER, {"kid": f"invented-{number}"})) for number in range(300)]
        outcomes = await asyncio.gather(*flood)
        assert {type(each) for each in outcomes} <= {UnauthenticatedError, QuotaExceededError}
        assert server.num_reads <= 2
        began_s = time.perf_counter()
        await known.principal(f"Bearer {signed(KEY, sub='carol')}")
        assert time.perf_counter() - began_s < 15, "it waits behind the flood"


async def test_callers_that_come_before_the_keys_are_there_wait_for_one_reading(
    tmp_path: Path, server: JwksServer
) -> None:
    server.delay_s = 0.3
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url)) as known:
        tokens = [signed(KEY, sub=f"user-{number}") for number in range(MAX_VERIFYING)]
        found = await asyncio.gather(*(known.principal(f"Bearer {token}") for token in tokens))
        assert len({principal.name for principal in found}) == MAX_VERIFYING
        assert server.num_reads == 1


BAD_ANSWERS: dict[str, dict[str, Any]] = {
    "an error": {"status": 503},
    "a redirect": {"status": 302},
    "no JSON": {"body": b"<html>"},
    "another document": {"body": b"[]"},
    "no keys": {"body": b'{"keys": []}'},
    "a secret": {"body": json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "first"}]}).encode()},
    "too large": {"body": b'{"keys": [' + b" " * MAX_SET_BYTES + b"]}"},
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
async def test_an_answer_that_is_no_set_of_keys_makes_tokens_unavailable_and_no_caller_known(
    kind: str, tmp_path: Path, server: JwksServer
) -> None:
    for name, value in BAD_ANSWERS[kind].items():
        setattr(server, name, value)
    async with knowing(write_issuers(tmp_path / "issuers.json", server.url)) as known:
        error = await refusal(known, signed(KEY))
        assert isinstance(error, UnavailableError)
        assert error.retry_after_s


async def test_keys_come_over_tls_from_a_server_that_the_file_trusts(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    issued = authority.issue("keys", folder=tmp_path)
    server = JwksServer(KEY)
    server.use_tls(issued.cert_file, issued.key_file)
    url = server.url
    with server.running():
        trusting = write_issuers(tmp_path / "issuers.json", url, ca_file=str(authority.ca_file))
        async with knowing(trusting) as known:
            assert (await known.principal(f"Bearer {signed(KEY)}")).name == "corp:alice"
        async with knowing(write_issuers(tmp_path / "issuers.json", url)) as known:
            assert isinstance(await refusal(known, signed(KEY)), UnavailableError)


async def test_keys_in_a_file_are_followed(tmp_path: Path) -> None:
    jwks, new = tmp_path / "keys.json", Key("second")

    def publish(*keys: Key) -> None:
        staged = jwks.with_suffix(".new")
        staged.write_text(json.dumps({"keys": [key.public_jwk() for key in keys]}))
        staged.replace(jwks)

    publish(KEY)
    async with knowing(write_issuers(tmp_path / "issuers.json", str(jwks))) as known:
        assert (await known.principal(f"Bearer {signed(KEY)}")).name == "corp:alice"
        publish(new)
        await asyncio.sleep(LOOK_EVERY_S + FAILED_S)
        assert (await known.principal(f"Bearer {signed(new)}")).name == "corp:alice"
        assert isinstance(await refusal(known, signed(KEY)), UnauthenticatedError)


async def test_several_issuers_have_their_own_keys_and_bounds_and_the_file_is_followed(
    tmp_path: Path, server: JwksServer
) -> None:
    other = Key("first")
    path = tmp_path / "issuers.json"
    with JwksServer(other).running() as second:
        listed: dict[str, Any] = {
            "corp": {"issuer": ISSUER, "audience": [AUDIENCE], "jwks": server.url, "tenants": ["acme"]},
            "lab": {"issuer": "https://lab.test", "audience": AUDIENCE, "jwks": second.url, "tenants": ["lab"]},
        }
        path.write_text(json.dumps({"issuers": listed}))
        async with knowing(path) as known:
            theirs = signed(other, iss="https://lab.test", tenants=["lab", "acme"])
            assert (await known.principal(f"Bearer {theirs}")).tenants == {"lab"}
            assert isinstance(await refusal(known, signed(other)), UnauthenticatedError)
            assert isinstance(await refusal(known, signed(KEY, iss="https://lab.test")), UnauthenticatedError)
            path.write_text(json.dumps({"issuers": {"lab": {**listed["lab"], "issued_after_s": now_s() + 600}}}))
            deadline = asyncio.get_running_loop().time() + 5 * REVOCATION_S  # by itself, REVOCATION_S would do
            while not await refused_as(known, theirs, TokenRevokedError):
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.1)
            assert isinstance(await refusal(known, signed(KEY)), UnauthenticatedError)
