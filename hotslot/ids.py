"""Identifiers: distinct types for strings that must never be mixed up."""

import hashlib
import re
import secrets
from typing import NewType

from hotslot.errors import FieldViolation, InvalidRequestError

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits."""
WorkerId = NewType("WorkerId", str)
"""One start of one worker process."""
TenantId = NewType("TenantId", str)
"""Owner of adapters; the default tenant is `DEFAULT_TENANT`."""
PartyId = NewType("PartyId", str)
"""Party whose requests are weighed as one beside those of other parties: a tenant, a principal, or an address."""
AdapterName = NewType("AdapterName", str)
"""An adapter's name within its tenant, for example `acme/support-bot`."""
TagName = NewType("TagName", str)
"""A movable pointer within an adapter, for example `latest`."""

DEFAULT_TENANT = TenantId("default")
NO_PARTY = PartyId("")
"""Party of what does not come from a caller."""
DIGEST_PREFIX = "sha256:"
DIGEST_LENGTH = len(DIGEST_PREFIX) + 64

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DIGEST_HEX = re.compile(r"[0-9a-f]{64}")
"""A digest without its prefix."""
TENANT_PATTERN = r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?"
_TENANT = re.compile(TENANT_PATTERN)


def parse_digest(text: str, *, field: str = "digest") -> Digest:
    """Check the form of a digest; raises InvalidRequestError naming `field`."""
    if not _DIGEST.fullmatch(text):
        raise InvalidRequestError(
            [FieldViolation(field, f"found {text[:80]!r}, expected 'sha256:' and 64 lower-case hex digits")]
        )
    return Digest(text)


def is_digest(text: object) -> bool:
    """Tell whether a value has the form of a digest."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def parse_tenant(text: str) -> TenantId:
    """Check the form of a tenant's id; raises InvalidRequestError."""
    if not _TENANT.fullmatch(text):
        raise InvalidRequestError(
            [
                FieldViolation(
                    "hotslot-tenant",
                    f"found {text[:80]!r}, expected 1 to 64 of [a-z0-9_-], beginning and ending with a letter or digit",
                )
            ]
        )
    return TenantId(text)


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """The digest of bytes in memory."""
    return digest_of_hex(hashlib.sha256(data).hexdigest())


def digest_of_hex(hex_digits: str) -> Digest:
    """The digest that a SHA-256, in lower-case hex digits, is written as."""
    return Digest(DIGEST_PREFIX + hex_digits)


def hex_of(digest: Digest) -> str:
    """Hex digits of a digest."""
    return digest.removeprefix(DIGEST_PREFIX)


def new_worker_id() -> WorkerId:
    """A fresh id for one start of a worker."""
    return WorkerId("w-" + secrets.token_hex(8))
