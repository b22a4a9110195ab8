"""Keys of blobs, and the names that blobs have alike on the disk, in object storage and in backups."""

import re
from typing import TypeAlias

from hotslot.errors import InvalidRequestError
from hotslot.ids import Digest, TenantId, digest_of_hex, hex_of, parse_tenant

BlobKey: TypeAlias = tuple[TenantId, Digest]
"""Tenant and digest: one tenant's blobs are neither visible nor shared with another's."""

BLOBS_FOLDER = "blobs"
_NAME = re.compile(rf"{BLOBS_FOLDER}/([^/]+)/([0-9a-f]{{2}})/(\2[0-9a-f]{{62}})")
_GENERATION = re.compile(r"(.+)\.([1-9][0-9]{0,17})")


def blob_name(key: BlobKey) -> str:
    """Name of a blob: `blobs/<tenant>/<first two hex digits>/<hex>`."""
    tenant, digest = key
    hex_digits = hex_of(digest)
    return f"{BLOBS_FOLDER}/{tenant}/{hex_digits[:2]}/{hex_digits}"


def blob_key(name: str) -> BlobKey | None:
    """Blob that has a name; None for a name that no blob has."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return parse_tenant(match[1]), digest_of_hex(match[3])
    except InvalidRequestError:
        return None


def object_name(key: BlobKey, generation: int) -> str:
    """Name of a blob in object storage, which has the blob's generation at its end unless that is 0."""
    return f"{blob_name(key)}.{generation}" if generation else blob_name(key)


def object_key(name: str) -> tuple[BlobKey, int] | None:
    """Blob and generation of a name in object storage; None for a name that no blob has."""
    match = _GENERATION.fullmatch(name)
    key = blob_key(match[1] if match else name)
    return (key, int(match[2]) if match else 0) if key is not None else None


def text_of_key(key: BlobKey) -> str:
    """Blob's name in notes."""
    return f"{key[0]} {key[1]}"


def key_of_text(text: str) -> BlobKey:
    """Blob of a name in notes."""
    tenant, _, digest = text.partition(" ")
    return TenantId(tenant), Digest(digest)
