"""JSON Web Tokens of trusted issuers: verified once, on a thread, and held against keys, time and revocation each time.

Nothing of a token is believed before its signature, by an algorithm that the issuer uses and a public key that it has.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import structlog

from hotslot.errors import (
    InvalidRequestError,
    QuotaExceededError,
    TokenExpiredError,
    TokenRevokedError,
    UnauthenticatedError,
)
from hotslot.formats.principals import EVERY_TENANT, Principal, Scope
from hotslot.ids import parse_tenant
from shared.followed_file import FollowedFile
from shared.identity.issuer_keys import IssuerKeys
from shared.identity.issuers import SEPARATOR, Issuers, TrustedIssuer, read_issuers
from shared.identity.key_set import SigningKey

log = structlog.get_logger(__name__)

MAX_VERIFYING = 64
"""Tokens that are verified or wait for it; more are refused for a moment."""
MAX_SUBJECT_LENGTH = 256
_TYPES = frozenset(["", "jwt", "at+jwt", "application/at+jwt"])
"""Types of tokens that say who calls; others of an issuer, such as logout tokens, do not."""
_OPTIONS: Any = {
    # Time is this process's own to tell, at each call.
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_sub": False,
    "verify_jti": False,
    "require": ["exp", "iss", "aud"],
}


@dataclass(frozen=True, slots=True)
class WebToken:
    """A token whose signature was verified."""

    issuer: str
    """Name of its issuer here."""
    thumbprint: str
    """Thumbprint of the key that verified it."""
    claims: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Claimed:
    """Parts of a token that say how it is to be verified; not believed yet."""

    algorithm: str
    kid: str
    issuer: str
    audience: frozenset[str]


class WebTokens:
    """Knows principals by the tokens of the issuers of a file, which may change; belongs to one event loop. Close it.

    Without a file it knows none.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        """Raises InvalidRequestError for a file that cannot be used."""
        self._clock = clock
        self._issuers = FollowedFile[Issuers](path, read_issuers, {})
        self._keys: dict[TrustedIssuer, IssuerKeys] = {}
        self._num_verifying = 0
        self._thread = ThreadPoolExecutor(1, "web-tokens")
        self._index()

    def close(self) -> None:
        """End readings of keys, and the thread that verifies."""
        for keys in self._keys.values():
            keys.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def begin(self) -> None:
        """Begin to read the keys, so that the first token need not wait for them."""
        for keys in self._keys.values():
            keys.begin()

    async def verified(self, token: str) -> WebToken:
        """A token whose signature, issuer and audience are right.

        Raises UnauthenticatedError, UnavailableError while the issuer's keys cannot be had, and QuotaExceededError
        while too many tokens are verified.
        """
        self._follow()
        claimed = _claimed(token)
        issuer = self._issuer_of(claimed)
        if issuer is None or claimed.algorithm not in issuer.algorithms:
            raise UnauthenticatedError("the token is of no issuer, audience and algorithm that are trusted here")
        if self._num_verifying >= MAX_VERIFYING:
            message = "too many tokens are being verified; try again shortly"
            raise QuotaExceededError(message, subject="tokens", retry_after_s=1.0)
        self._num_verifying += 1
        try:
            key = await self._keys[_source(issuer)].find(claimed.kid, claimed.algorithm)
            if key is None:
                raise UnauthenticatedError(f"the token is signed with a key that issuer {issuer.name} does not have")
            loop = asyncio.get_running_loop()
            claims = await loop.run_in_executor(self._thread, _verify, token, claimed.algorithm, key, issuer)
        finally:
            self._num_verifying -= 1
        return WebToken(issuer.name, key.thumbprint, claims)

    async def ready(self, token: WebToken) -> None:
        """Have keys to hold a verified token against, where they can be had."""
        self._follow()
        if (issuer := self._issuers.content.get(token.issuer)) is not None:
            await self._keys[_source(issuer)].ready()

    def principal(self, token: WebToken) -> Principal:
        """The principal of a verified token as it is now.

        Raises UnauthenticatedError and its kinds, and UnavailableError while the issuer's keys are too old.
        """
        self._follow()
        issuer = self._issuers.content.get(token.issuer)
        claims = token.claims
        if issuer is None or claims["iss"] != issuer.issuer or not issuer.audience & _texts(claims["aud"]):
            raise UnauthenticatedError("the token's issuer is not trusted here any more")
        self._check_time(issuer, claims)
        keys = self._keys[_source(issuer)]
        keys.begin()
        if not keys.has(token.thumbprint):
            raise UnauthenticatedError(f"the token is signed with a key that issuer {issuer.name} has no more")
        subject = _at(claims, issuer.principal_claim)
        if not _is_name(subject):
            expected = f"1 to {MAX_SUBJECT_LENGTH} characters of visible ASCII, without blanks"
            raise UnauthenticatedError(f"the token's claim {issuer.principal_claim} names no principal: {expected}")
        scopes = _scopes(issuer, claims) if issuer.scopes_claim else issuer.scopes
        tenants = _tenants(issuer, claims) if issuer.tenants_claim else issuer.tenants
        return Principal(f"{issuer.name}{SEPARATOR}{subject}", tenants, scopes)

    def expires_s(self, token: WebToken) -> float:
        """Unix time at which a verified token is refused."""
        issuer = self._issuers.content.get(token.issuer)
        return float(token.claims["exp"]) + (issuer.leeway_s if issuer is not None else 0.0)

    def _check_time(self, issuer: TrustedIssuer, claims: Mapping[str, Any]) -> None:
        now_s, issued_s = self._clock(), claims.get("iat", 0)
        if now_s >= claims["exp"] + issuer.leeway_s:
            raise TokenExpiredError("the token has expired; ask its issuer for a new one")
        if now_s < max(claims.get("nbf", 0), issued_s) - issuer.leeway_s:
            raise UnauthenticatedError("the token is not valid yet, by this server's clock")
        if issued_s < issuer.issued_after_s or ("jti" in claims and claims["jti"] in issuer.revoked):
            raise TokenRevokedError("the token was revoked; ask its issuer for a new one")

    def _issuer_of(self, claimed: _Claimed) -> TrustedIssuer | None:
        fitting = (one for one in self._issuers.content.values() if one.issuer == claimed.issuer)
        return next((one for one in fitting if one.audience & claimed.audience), None)

    def _follow(self) -> None:
        """Go by the file as it is now; one that cannot be read, or is being written, changes nothing."""
        if self._issuers.refresh():
            self._index()

    def _index(self) -> None:
        sources = {_source(issuer) for issuer in self._issuers.content.values()}
        for source in self._keys.keys() - sources:
            self._keys.pop(source).close()
        for source in sources - self._keys.keys():
            self._keys[source] = IssuerKeys(source)


def is_web_token(token: str) -> bool:
    """Tell whether a text has the form of a JSON Web Token."""
    return token.count(".") == 2


def _source(issuer: TrustedIssuer) -> TrustedIssuer:
    """The issuer as far as its keys are concerned: they stay known when anything else about it changes."""
    return TrustedIssuer(
        issuer.name,
        issuer.issuer,
        frozenset(),
        issuer.jwks,
        frozenset(),
        algorithms=issuer.algorithms,
        refresh_s=issuer.refresh_s,
        stale_s=issuer.stale_s,
        ca_file=issuer.ca_file,
    )


def _claimed(token: str) -> _Claimed:
    """Parts of a token; raises UnauthenticatedError for what is none."""
    try:
        whole = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as exc:
        raise UnauthenticatedError("malformed authorization: the token is no JSON Web Token") from exc
    header, claims = whole["header"], whole["payload"]
    kid, kind = header.get("kid", ""), header.get("typ", "")
    texts = (header.get("alg"), kid, kind, claims.get("iss"))
    if not all(isinstance(each, str) for each in texts) or kind.lower() not in _TYPES or "crit" in header:
        raise UnauthenticatedError("malformed authorization: the token is no JSON Web Token that says who calls")
    return _Claimed(str(texts[0]), kid, str(texts[3]), _texts(claims.get("aud")))


def _verify(token: str, algorithm: str, key: SigningKey, issuer: TrustedIssuer) -> Mapping[str, Any]:
    """Claims of a token that is genuine; raises UnauthenticatedError. Takes a tenth of a millisecond."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[algorithm],
            audience=sorted(issuer.audience),
            issuer=issuer.issuer,
            options=_OPTIONS,
        )
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as exc:
        raise UnauthenticatedError(f"the token is not known here: {type(exc).__name__}") from exc
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_time(value):
            raise UnauthenticatedError(f"the token's claim {name} is no time")
    if not isinstance(claims.get("jti", ""), str):
        raise UnauthenticatedError("the token's claim jti is no text")
    return claims


def _is_time(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_name(subject: object) -> bool:
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_LENGTH:
        return False
    return subject.isascii() and subject.isprintable() and " " not in subject


def _at(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by its way through objects, as `realm_access.roles`; None where there is none."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _texts(value: object) -> frozenset[str]:
    """Texts of a claim that is one, or a list of them."""
    listed = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return frozenset(each for each in listed if isinstance(each, str))


def _scopes(issuer: TrustedIssuer, claims: Mapping[str, Any]) -> frozenset[Scope]:
    known = {f"{issuer.scope_prefix}{scope.value}": scope for scope in issuer.scopes}
    words = {word for text in _texts(_at(claims, issuer.scopes_claim)) for word in text.split()}
    return frozenset(known[word] for word in words & known.keys())


def _tenants(issuer: TrustedIssuer, claims: Mapping[str, Any]) -> frozenset[str]:
    named = _texts(_at(claims, issuer.tenants_claim))
    if EVERY_TENANT not in issuer.tenants:
        return named & issuer.tenants
    return frozenset(name for name in named if name == EVERY_TENANT or _is_tenant(name))


def _is_tenant(name: str) -> bool:
    try:
        parse_tenant(name)
    except InvalidRequestError:
        return False
    return True
