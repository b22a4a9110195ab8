"""Files of issuers and sets of keys: nothing is trusted by mistake, and keys are read in time and not too often."""

import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import InvalidRequestError, UnavailableError
from shared.identity.issuer_keys import FAILED_S, UNKNOWN_KEY_S, IssuerKeys
from shared.identity.issuers import TrustedIssuer, parse_issuers
from shared.identity.key_set import parse_key_set
from tests.support.issuer import AUDIENCE, ISSUER, Key, rsa_key

KEY = Key("first")
RSA_KEY = rsa_key("rsa")


def corp(jwks: str = "https://id.test/keys", **changes: Any) -> TrustedIssuer:
    return TrustedIssuer("corp", ISSUER, frozenset([AUDIENCE]), jwks, frozenset(["*"]), **changes)


class Readings:
    """Readings of keys that a test lets succeed or fail, and the time that passes between them."""

    def __init__(self, *keys: Key) -> None:
        self.keys, self.fails, self.num, self.now_s = keys, False, 0, 1000.0

    async def read(self, issuer: TrustedIssuer) -> bytes:
        self.num += 1
        if self.fails:
            raise ConnectionRefusedError("nothing listens")
        return json.dumps({"keys": [key.public_jwk() for key in self.keys]}).encode()


async def test_known_keys_are_believed_for_a_bounded_time_while_the_issuer_cannot_be_asked() -> None:
    readings = Readings(KEY)
    keys = IssuerKeys(corp(refresh_s=300, stale_s=3600), readings.read, lambda: readings.now_s)
    found = await keys.find("first", "ES256")
    assert found is not None
    readings.fails = True
    for _ in range(11):
        readings.now_s += 300
        assert await keys.find("first", "ES256") == found
        assert keys.has(found.thumbprint)
    readings.now_s += 301
    with pytest.raises(UnavailableError, match="corp"):
        await keys.find("first", "ES256")
    with pytest.raises(UnavailableError):
        keys.has(found.thumbprint)
    readings.fails = False
    readings.now_s += FAILED_S
    assert await keys.find("first", "ES256") == found


async def test_readings_are_spaced_whether_they_fail_or_lack_the_key() -> None:
    readings = Readings(KEY)
    keys = IssuerKeys(corp(), readings.read, lambda: readings.now_s)
    for second in range(100):
        assert await keys.find(f"invented-{second}", "ES256") is None
        readings.now_s += 1
    assert readings.num <= 100 / UNKNOWN_KEY_S + 1
    readings.fails, readings.num = True, 0
    keys = IssuerKeys(corp(), readings.read, lambda: readings.now_s)
    for _ in range(100):
        with pytest.raises(UnavailableError):
            await keys.find("first", "ES256")
        readings.now_s += 1
    assert readings.num <= 100 / FAILED_S + 1


WRONG_FILES: dict[str, dict[str, Any]] = {
    "unknown field": {"algorithm": "RS256"},
    "algorithm with a secret": {"algorithms": ["HS256"]},
    "algorithm none": {"algorithms": ["none"]},
    "no algorithms": {"algorithms": []},
    "no audience": {"audience": []},
    "empty audience": {"audience": [""]},
    "plaintext": {"jwks": "http://id.test/keys"},
    "a relative path": {"jwks": "keys.json"},
    "a password": {"jwks": "https://user:secret@id.test/keys"},
    "wide leeway": {"leeway_s": 3600},
    "negative leeway": {"leeway_s": -1},
    "endless staleness": {"stale_s": float("inf")},
    "staleness below the refresh": {"stale_s": 10},
    "no tenant": {"tenants": ["No!"]},
    "no scope": {"scopes": ["fly"]},
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_file_of_issuers_that_would_trust_too_much_is_refused(kind: str) -> None:
    one = {"issuer": ISSUER, "audience": [AUDIENCE], "jwks": "https://id.test/keys", "tenants": ["acme"]}
    assert parse_issuers(json.dumps({"issuers": {"corp": one}}).encode(), "file")
    with pytest.raises(InvalidRequestError, match="corp"):
        parse_issuers(json.dumps({"issuers": {"corp": {**one, **WRONG_FILES[kind]}}}).encode(), "file")


def test_a_token_cannot_be_meant_for_two_issuers() -> None:
    one = {"issuer": ISSUER, "audience": [AUDIENCE], "jwks": "/keys.json", "tenants": ["acme"]}
    apart = {"corp": one, "workers": {**one, "audience": ["hotslot-workers"]}}
    assert len(parse_issuers(json.dumps({"issuers": apart}).encode(), "file")) == 2
    with pytest.raises(InvalidRequestError, match="the same issuer and audience"):
        parse_issuers(json.dumps({"issuers": {"corp": one, "twin": one}}).encode(), "file")


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_what_is_no_file_of_issuers_is_refused_as_a_wrong_request(data: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        parse_issuers(data, "file")


USELESS_KEYS: dict[str, Callable[[], object]] = {
    "for encryption": lambda: KEY.public_jwk(use="enc"),
    "that signs": lambda: KEY.public_jwk(key_ops=["sign"]),
    "of another algorithm": lambda: KEY.public_jwk(alg="ES384"),
    "off its curve": lambda: KEY.public_jwk(y=KEY.public_jwk()["x"]),
    "without a part": lambda: KEY.public_jwk(x=None),
    "too small": lambda: rsa_key("small", bits=1024).public_jwk(),
    "secret": lambda: {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
    "no object": lambda: "key",
}


@pytest.mark.parametrize("kind", USELESS_KEYS)
def test_a_key_that_does_not_verify_signatures_is_passed_over(kind: str) -> None:
    every = corp().algorithms
    both = json.dumps({"keys": [USELESS_KEYS[kind](), RSA_KEY.public_jwk()]}).encode()
    assert [key.kid for key in parse_key_set(both, every).keys] == ["rsa"]
    with pytest.raises(ValueError, match="none of 1 keys"):
        parse_key_set(json.dumps({"keys": [USELESS_KEYS[kind]()]}).encode(), every)


def test_a_private_key_in_a_set_is_used_as_its_public_one() -> None:
    private = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.private))
    (key,) = parse_key_set(json.dumps({"keys": [private]}).encode(), corp().algorithms).keys
    assert not hasattr(key.key, "private_numbers")
