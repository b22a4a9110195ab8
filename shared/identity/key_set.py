"""Public keys of an issuer, as a JSON Web Key Set has them; what is no key for signatures is passed over. No I/O."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

MAX_SET_BYTES = 256 * 1024
MAX_KEYS = 64
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
"""Smaller ones can be broken; larger ones take long to verify with."""
_BY_CURVE = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
_PUBLIC = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}
"""Members of a public key, which are those of its thumbprint too (RFC 7638)."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One public key."""

    kid: str
    """Empty where the set names none."""
    algorithms: frozenset[str]
    """Algorithms that it is for."""
    thumbprint: str
    key: Any = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys of one issuer at one time."""

    keys: tuple[SigningKey, ...]

    def find(self, kid: str, algorithm: str) -> SigningKey | None:
        """The key of a signature; without a kid, the only key for the algorithm."""
        found = [one for one in self.keys if algorithm in one.algorithms and (not kid or one.kid == kid)]
        return found[0] if len(found) == 1 or (found and kid) else None

    def has(self, thumbprint: str) -> bool:
        """Tell whether a key is still one of the issuer's."""
        return any(one.thumbprint == thumbprint for one in self.keys)


def parse_key_set(data: bytes, algorithms: frozenset[str]) -> KeySet:
    """Keys of a set that are for some of the algorithms. Raises ValueError for what is no set, or has none of them."""
    if len(data) > MAX_SET_BYTES:
        raise ValueError(f"more than {MAX_SET_BYTES} bytes")
    try:
        listed = json.loads(data)["keys"]
    except (RecursionError, KeyError, TypeError) as exc:
        raise ValueError("expected an object with a list of keys") from exc
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError(f"expected a list of at most {MAX_KEYS} keys")
    keys = tuple(key for each in listed if (key := _key(each, algorithms)) is not None)
    if not keys:
        raise ValueError(f"none of {len(listed)} keys is a public key for {', '.join(sorted(algorithms))}")
    return KeySet(keys)


def _key(value: object, algorithms: frozenset[str]) -> SigningKey | None:
    """A key that verifies signatures; None for another."""
    if not isinstance(value, Mapping) or value.get("use", "sig") != "sig":
        return None
    operations = value.get("key_ops", ["verify"])
    public = _PUBLIC.get(str(value.get("kty")))
    if public is None or not isinstance(operations, list) or "verify" not in operations:
        return None
    # Without its private members, which a set should not have.
    members = {name: value.get(name) for name in public}
    fitting = frozenset(_algorithms(value)) & algorithms
    if not fitting or not all(isinstance(each, str) for each in members.values()):
        return None
    try:
        key = jwt.PyJWK(members, min(fitting)).key
    except (jwt.PyJWTError, ValueError):
        return None
    if members["kty"] == "RSA" and not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return None
    kid = value.get("kid", "")
    thumbprint = hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()
    return SigningKey(kid if isinstance(kid, str) else "", fitting, thumbprint, key)


def _algorithms(value: Mapping[str, Any]) -> Iterable[str]:
    """Algorithms that a key can be used with: its own, where it says so."""
    if value["kty"] == "RSA":
        possible = {f"{kind}{bits}" for kind in ("RS", "PS") for bits in (256, 384, 512)}
    else:
        possible = {_BY_CURVE.get(str(value.get("crv")), "")}
    return possible & {str(value["alg"])} if "alg" in value else possible
