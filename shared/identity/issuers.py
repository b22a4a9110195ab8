"""File of trusted issuers: whose JSON Web Tokens are taken, by which keys, and which principals their claims make.

{"issuers": {"corp": {"issuer": "https://id.corp.example", "audience": ["hotslot"],
                      "jwks": "https://id.corp.example/keys", "tenants": ["acme"]}}}
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hotslot.endpoints import parse_endpoint
from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from hotslot.formats.principals import CLIENT_SCOPES, EVERY_TENANT, MAX_FILE_BYTES, Scope
from hotslot.ids import parse_tenant

ALGORITHMS = frozenset(
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]  # only with public keys
)
MAX_LEEWAY_S = 300.0
MAX_STALE_S = 7 * 86400.0
SEPARATOR = ":"
"""Between an issuer's name here and a token's subject: no principal of the file of principals is meant by it."""


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """Issuer of tokens, for one audience or several, and the bounds of what its tokens may say."""

    name: str
    """Name here, in front of the names of its principals."""
    issuer: str
    """The claim `iss`, as it is in tokens."""
    audience: frozenset[str]
    """The claim `aud` has one of these."""
    jwks: str
    """https URL of its public keys (http on this machine alone), or the absolute path of a file with them."""
    tenants: frozenset[str]
    """Tenants that its tokens may name; `*` for every one."""
    scopes: frozenset[Scope] = CLIENT_SCOPES
    """Scopes that its tokens may have."""
    algorithms: frozenset[str] = ALGORITHMS
    """Algorithms of its signatures."""
    principal_claim: str = "sub"
    """Claim that names the principal."""
    tenants_claim: str = "tenants"
    """Claim with the tenants, a text or a list; empty gives each token all of `tenants`."""
    scopes_claim: str = "scope"
    """Claim with the scopes, words in a text or a list; empty gives each token all of `scopes`."""
    scope_prefix: str = ""
    """Text before each scope in that claim, as `hotslot:` in `hotslot:read`; other words mean nothing."""
    leeway_s: float = 30.0
    """Difference of clocks that is borne."""
    refresh_s: float = 300.0
    """Time between two readings of the keys."""
    stale_s: float = 3600.0
    """Longest time for which keys are believed that cannot be read again."""
    ca_file: Path | None = None
    """Certificates that the one of `jwks` must lead to, in place of those that the system trusts."""
    revoked: frozenset[str] = frozenset()
    """Tokens that are refused, by their claim `jti`."""
    issued_after_s: float = 0.0
    """Tokens of an earlier `iat`, or of none, are refused; Unix time, 0 takes all."""

    @property
    def is_file(self) -> bool:
        """True where the keys are a file."""
        return self.jwks.startswith("/")


Issuers = Mapping[str, TrustedIssuer]


def read_issuers(path: Path) -> Issuers:
    """Issuers of a file; raises InvalidRequestError naming the issuer at fault."""
    try:
        return parse_issuers(path.read_bytes(), str(path))
    except OSError as exc:
        raise InvalidRequestError([FieldViolation(str(path), exc.strerror or str(exc))]) from exc


def parse_issuers(data: bytes, where: str) -> Issuers:
    """The file's content; raises InvalidRequestError naming the issuer at fault."""
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        found = {name: _issuer(name, value) for name, value in json.loads(data)["issuers"].items()}
        _check_apart(found)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, HotslotError) as exc:
        problem = f"expected issuers as docs/security.md has them: {exc}"
        raise InvalidRequestError([FieldViolation(where, problem)]) from exc
    return found


def _check_apart(issuers: Issuers) -> None:
    """Raise ValueError where a token could be meant for two entries."""
    seen: dict[tuple[str, str], str] = {}
    for one in issuers.values():
        for audience in one.audience:
            other = seen.setdefault((one.issuer, audience), one.name)
            if other != one.name:
                raise ValueError(f"{one.name} and {other} have the same issuer and audience")


def _issuer(name: str, value: dict[str, Any]) -> TrustedIssuer:
    if not name or len(name) > 64 or not name.isascii() or not name.isprintable() or set(name) & {SEPARATOR, " "}:
        raise ValueError(f"{name[:40]!r}: expected a name of visible ASCII, without blanks and {SEPARATOR!r}")
    known = {each.name for each in fields(TrustedIssuer)} - {"name"}
    if unknown := set(value) - known:
        raise ValueError(f"{name}: unknown {', '.join(sorted(unknown))}")
    if missing := {"issuer", "audience", "jwks", "tenants"} - set(value):
        raise ValueError(f"{name}: missing {', '.join(sorted(missing))}")
    issuer = TrustedIssuer(name=name, **{key: _typed(f"{name}: {key}", key, one) for key, one in value.items()})
    if not issuer.issuer or not issuer.audience or not all(issuer.audience) or not issuer.principal_claim:
        raise ValueError(f"{name}: expected an issuer, an audience and a claim for the principal, none of them empty")
    if not issuer.algorithms or issuer.algorithms - ALGORITHMS:
        raise ValueError(f"{name}: algorithms: expected some of {', '.join(sorted(ALGORITHMS))}")
    if issuer.leeway_s > MAX_LEEWAY_S or not 1 <= issuer.refresh_s <= issuer.stale_s <= MAX_STALE_S:
        bounds = f"leeway_s up to {MAX_LEEWAY_S:g}, and 1 <= refresh_s <= stale_s <= {MAX_STALE_S:g}"
        raise ValueError(f"{name}: expected {bounds}")
    _check_place(issuer)
    return issuer


def _check_place(issuer: TrustedIssuer) -> None:
    if issuer.is_file:
        return
    url = urlsplit(issuer.jwks)
    is_here = url.scheme == "http" and parse_endpoint(f"{url.netloc}{'' if url.port else ':80'}").is_loopback
    if not url.hostname or not (url.scheme == "https" or is_here) or url.username is not None:
        raise ValueError(f"{issuer.name}: jwks: expected an https URL without a password, or an absolute path")


def _typed(where: str, key: str, value: object) -> Any:
    """A field's value; raises ValueError that says where it stands."""
    try:
        return _TYPED.get(key, _text)(where, value)
    except (ValueError, HotslotError) as exc:
        problem = str(exc)
        raise ValueError(problem if problem.startswith(where) else f"{where}: {problem}") from exc


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > 2048:
        raise ValueError(f"{where}: expected a text")
    return value


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{where}: expected a number, 0 or more")
    return float(value)


def _texts(where: str, value: object) -> frozenset[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise ValueError(f"{where}: expected a list of texts")
    return frozenset(_text(where, each) for each in listed)


def _tenants(where: str, value: object) -> frozenset[str]:
    return frozenset(each if each == EVERY_TENANT else parse_tenant(each) for each in _texts(where, value))


def _scopes(where: str, value: object) -> frozenset[Scope]:
    return frozenset(Scope(each) for each in _texts(where, value))


def _path(where: str, value: object) -> Path:
    return Path(_text(where, value))


_TYPED: Mapping[str, Any] = {
    "audience": _texts,
    "tenants": _tenants,
    "scopes": _scopes,
    "algorithms": _texts,
    "leeway_s": _number,
    "refresh_s": _number,
    "stale_s": _number,
    "issued_after_s": _number,
    "ca_file": _path,
    "revoked": _texts,
}
