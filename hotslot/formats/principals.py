"""File of principals: who may call, as whom, and hashes of their tokens, from which no token can be made.

    {"principals": {"alice": {"tenants": ["acme"], "scopes": ["read", "use"], "certificates": ["spiffe://org/alice"],
                              "tokens": [{"id": "…", "hash": "scrypt$…", "created_s": 1, "expires_s": 0}]}}}

A token is `hs1_<id>_<secret>`: the id finds its hash, and the secret has 256 random bits. An id that begins with `k` is
a checked one: its secret ends with a check of the bits before, keyed with the salt of the hash. So a server, which has
the salt, tells an invented secret without the work of the hash, and a caller can make no check that fits.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from hotslot.ids import parse_tenant

EVERY_TENANT = "*"
TOKEN_PREFIX = "hs1"
SECRET_BYTES = 32
CHECKED_ID = re.compile(r"k[0-9a-f]{16}")
"""Ids of tokens whose secret ends with a check; a release without checks takes them for a part of the secret."""
CHECK_BYTES = 8
CHECK_LENGTH = 11
"""Characters of a check."""
MAX_NAME_LENGTH = 128
MAX_FILE_BYTES = 64 * 2**20
# RFC 7914; 16 MiB and tens of milliseconds for each guess, of a secret that needs no such help.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**14, 8, 1
MAX_SCRYPT_BYTES = 64 * 2**20


class Scope(Enum):
    """Kinds of calls that a principal may make."""

    READ = "read"
    """List adapters, versions and placements, and read their weights."""
    USE = "use"
    """Generate, and load adapters."""
    PUBLISH = "publish"
    """Push and import adapters, and move tags."""
    ADMIN = "admin"
    """Delete adapters, set policies, and pin, unload and switch adapters on workers."""
    WORKER = "worker"
    """Ask as a worker does: what a worker needs of the store, and of other workers for its callers."""
    GATEWAY = "gateway"
    """Act for principals that the gateway has authenticated."""
    OPERATOR = "operator"
    """Drain workers, and change base models."""


CLIENT_SCOPES = frozenset({Scope.READ, Scope.USE, Scope.PUBLISH, Scope.ADMIN})
"""Scopes within a tenant: all that a gateway can act with."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token that was made, without the token."""

    id: str
    hash: str = field(repr=False)
    created_s: int
    expires_s: int = 0
    """Unix time; 0 means never."""
    revoked_s: int = 0
    """Unix time; 0 while it is valid."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Caller by name: a tenant's user, or a service."""

    name: str
    tenants: frozenset[str]
    scopes: frozenset[Scope]
    certificates: frozenset[str] = frozenset()
    """Names in its certificates: DNS names, and URIs such as SPIFFE ids."""
    tokens: tuple[TokenRecord, ...] = ()

    def may_name(self, tenant: str) -> bool:
        """Tell whether a tenant is one of its own."""
        return EVERY_TENANT in self.tenants or tenant in self.tenants


Principals = Mapping[str, Principal]


def new_token(now_s: int, expires_s: int = 0) -> tuple[str, TokenRecord]:
    """A token and its record."""
    token_id, salt, drawn = f"k{secrets.token_hex(8)}", secrets.token_bytes(16), secrets.token_urlsafe(SECRET_BYTES)
    secret = drawn + _check(drawn, salt)
    stored = f"scrypt${SCRYPT_N}${SCRYPT_R}${SCRYPT_P}${_text(salt)}${_text(_scrypt(secret, salt))}"
    return f"{TOKEN_PREFIX}_{token_id}_{secret}", TokenRecord(token_id, stored, now_s, expires_s)


def split_token(token: str) -> tuple[str, str] | None:
    """Id and secret of a token; None for what is none."""
    prefix, _, rest = token.partition("_")
    token_id, _, secret = rest.partition("_")
    return (token_id, secret) if prefix == TOKEN_PREFIX and token_id and secret else None


def may_be_secret_of(record: TokenRecord, secret: str) -> bool:
    """Tell in microseconds, and in constant time, that a secret is an invented one; true where its hash has to tell."""
    if not CHECKED_ID.fullmatch(record.id):
        return True
    _, _, _, _, salt, _ = record.hash.split("$")
    expected = _check(secret[:-CHECK_LENGTH], _bytes(salt))
    return hmac.compare_digest(secret[-CHECK_LENGTH:].encode(), expected.encode())


def is_secret_of(record: TokenRecord, secret: str) -> bool:
    """Compare in constant time; takes tens of milliseconds."""
    _, n, r, p, salt, expected = record.hash.split("$")
    found = _scrypt(secret, _bytes(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, _bytes(expected))


def parse_principals(data: bytes, where: str) -> Principals:
    """The file's content; raises InvalidRequestError naming the principal at fault."""
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        document = json.loads(data)
        listed = document["principals"]
        found = {name: _principal(name, value) for name, value in listed.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, HotslotError) as exc:
        problem = f"expected principals as docs/security.md has them: {exc}"
        raise InvalidRequestError([FieldViolation(where, problem)]) from exc
    ids = [record.id for principal in found.values() for record in principal.tokens]
    shown = [name for principal in found.values() for name in principal.certificates]
    for what, names in (("token id", ids), ("certificate", shown)):
        if len(names) != len(set(names)):
            raise InvalidRequestError([FieldViolation(where, f"a {what} belongs to two principals")])
    return found


def encode_principals(principals: Principals) -> bytes:
    """The file's content."""
    listed = {name: _document(principal) for name, principal in sorted(principals.items())}
    return json.dumps({"principals": listed}, indent=1).encode() + b"\n"


def read_principals(path: Path) -> Principals:
    """Principals of a file; raises InvalidRequestError."""
    try:
        return parse_principals(path.read_bytes(), str(path))
    except OSError as exc:
        raise InvalidRequestError([FieldViolation(str(path), exc.strerror or str(exc))]) from exc


def revoked(principals: Principals, token_id: str, now_s: int) -> Principals:
    """The same with a token revoked; raises InvalidRequestError for one that is not there."""
    for principal in principals.values():
        for index, record in enumerate(principal.tokens):
            if record.id == token_id:
                tokens = list(principal.tokens)
                tokens[index] = replace(record, revoked_s=record.revoked_s or now_s)
                return {**principals, principal.name: replace(principal, tokens=tuple(tokens))}
    raise InvalidRequestError([FieldViolation("token", f"no principal has a token {token_id[:40]!r}")])


def _principal(name: str, value: dict[str, Any]) -> Principal:
    if not name or len(name) > MAX_NAME_LENGTH or not name.isascii() or not name.isprintable() or " " in name:
        raise ValueError(f"{name[:40]!r}: expected a name of visible ASCII, without blanks")
    unknown = set(value) - {"tenants", "scopes", "certificates", "tokens"}
    if unknown:
        raise ValueError(f"{name}: unknown {', '.join(sorted(unknown))}")
    tenants = frozenset(each if each == EVERY_TENANT else parse_tenant(each) for each in value.get("tenants", ()))
    scopes = frozenset(Scope(each) for each in value.get("scopes", ()))
    tokens = tuple(TokenRecord(**each) for each in value.get("tokens", ()))
    for record in tokens:
        if not (record.hash.startswith("scrypt$") and record.hash.count("$") == 5):
            raise ValueError(f"{name}: a token without a hash of scrypt")
        n, r = (int(number) for number in record.hash.split("$")[1:3])
        if 128 * n * r > MAX_SCRYPT_BYTES // 2:
            raise ValueError(f"{name}: a token's hash takes too much memory")
    return Principal(name, tenants, scopes, frozenset(value.get("certificates", ())), tokens)


def _document(principal: Principal) -> dict[str, Any]:
    tokens = [
        {
            "id": record.id,
            "hash": record.hash,
            "created_s": record.created_s,
            "expires_s": record.expires_s,
            "revoked_s": record.revoked_s,
        }
        for record in principal.tokens
    ]
    return {
        "tenants": sorted(principal.tenants),
        "scopes": [scope.value for scope in Scope if scope in principal.scopes],
        "certificates": sorted(principal.certificates),
        "tokens": tokens,
    }


def _scrypt(secret: str, salt: bytes, n: int = SCRYPT_N, r: int = SCRYPT_R, p: int = SCRYPT_P) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=n, r=r, p=p, maxmem=MAX_SCRYPT_BYTES, dklen=32)


def _check(drawn: str, salt: bytes) -> str:
    mac = hmac.digest(salt, b"hotslot token " + drawn.encode(), "sha256")[:CHECK_BYTES]
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
