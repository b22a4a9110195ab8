"""The description of a backup, written last: a backup that has it, and is what it says, is complete.

`blobs/<tenant>/<first two hex digits>/<hex>`, `catalog.sqlite3` and `manifest.json`, in a folder or, in this order
(earlier backups begin with the catalog), in a tar archive.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hotslot.errors import HotslotError, PreconditionError
from hotslot.ids import Digest, parse_digest, parse_tenant
from store_service.content.keys import BlobKey

FORMAT = "hotslot.backup/1"
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class BackedUpFile:
    """Digest and size of a file."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """Content of a backup."""

    catalog_id: str
    create_time: str
    """ISO 8601, in UTC."""
    catalog: BackedUpFile
    blobs: Mapping[BlobKey, int]
    """Sizes in bytes."""
    elsewhere: Mapping[BlobKey, str]
    """Blobs that were not on the store's disk, and the commit that each can be had from again."""

    def to_json(self) -> bytes:
        """The file's bytes."""
        document = {
            "format": FORMAT,
            "catalog_id": self.catalog_id,
            "create_time": self.create_time,
            "catalog": {"digest": self.catalog.digest, "size_bytes": self.catalog.size_bytes},
            "blobs": [
                {"tenant": tenant, "digest": digest, "size_bytes": size_bytes}
                for (tenant, digest), size_bytes in sorted(self.blobs.items())
            ],
            "elsewhere": [
                {"tenant": tenant, "digest": digest, "source": source}
                for (tenant, digest), source in sorted(self.elsewhere.items())
            ],
        }
        return json.dumps(document, indent=1).encode() + b"\n"


def parse_manifest(data: bytes) -> BackupManifest:
    """Raises PreconditionError for what is none."""
    try:
        document: dict[str, Any] = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, this version knows {FORMAT!r}")
        return BackupManifest(
            str(document["catalog_id"]),
            str(document["create_time"]),
            BackedUpFile(parse_digest(document["catalog"]["digest"]), int(document["catalog"]["size_bytes"])),
            {_key(entry): int(entry["size_bytes"]) for entry in document["blobs"]},
            {_key(entry): str(entry["source"]) for entry in document["elsewhere"]},
        )
    except (ValueError, KeyError, TypeError, RecursionError, HotslotError) as exc:
        raise PreconditionError(f"{MANIFEST} of the backup cannot be read: {exc}", MANIFEST) from exc


def _key(entry: Mapping[str, Any]) -> BlobKey:
    return parse_tenant(entry["tenant"]), parse_digest(entry["digest"])
