"""Takes a backup of a store's data folder, whether or not the store runs.

The catalog is copied first, in one of its states, then the blobs that this state refers to: those never change, and
none is removed meanwhile. So each version that was acknowledged before is in the backup with its weights.
"""

import hashlib
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from hotslot.content_files import Readable
from hotslot.errors import DigestMismatchError, NotFoundError
from hotslot.formats.file_names import CATALOG_FILE
from hotslot.ids import Digest
from store_service.backup.catalog_copy import check_catalog, copy_catalog, referenced_blobs
from store_service.backup.manifest import MANIFEST, BackedUpFile, BackupManifest
from store_service.backup.places import BackupTarget
from store_service.content.hold import holding
from store_service.content.keys import BlobKey, blob_name
from store_service.sources.sources import pinned_location

HOLD_TIMEOUT_S = 60.0

OnCopied = Callable[[int, int], None]
"""Hears how many of how many blobs are done."""


class _Hashing:
    """A file whose bytes are digested as they are read."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._hash.update(data)
        return data

    @property
    def digest(self) -> Digest:
        """Digest of what was read."""
        return Digest("sha256:" + self._hash.hexdigest())


def take_backup(
    data_dir: Path, catalog: Path, target: BackupTarget, on_progress: OnCopied = lambda done, of: None
) -> BackupManifest:
    """Write a backup; it is complete once this returns.

    Raises NotFoundError where there is no store, or a blob is missing that cannot be had again, DigestMismatchError for
    one that has rotted, CatalogDamagedError and StoreUnavailableError.
    """
    if not catalog.is_file():
        raise NotFoundError(
            f"{catalog} does not exist: {data_dir} is no store's data_dir, or its catalog is in PostgreSQL (take "
            "pg_dump for that one)",
            str(catalog),
        )
    with holding(data_dir, HOLD_TIMEOUT_S), tempfile.TemporaryDirectory(prefix="hotslot-backup-") as scratch:
        copy = Path(scratch) / CATALOG_FILE
        copy_catalog(catalog, copy)
        catalog_id = check_catalog(copy)
        wanted = referenced_blobs(copy)
        content = _add(target, CATALOG_FILE, copy)
        blobs: dict[BlobKey, int] = {}
        elsewhere: dict[BlobKey, str] = {}
        for number, (key, sources) in enumerate(sorted(wanted.items())):
            on_progress(number, len(wanted))
            name = blob_name(key)
            try:
                found = _add(target, name, data_dir / name)
            except FileNotFoundError as exc:
                elsewhere[key] = _other_source(key, sources, exc)
                continue
            if found.digest != key[1]:
                what = f"blob {key[1]} of tenant {key[0]} on the store's disk (reading it from the store repairs it)"
                raise DigestMismatchError(what, found.digest, key[1])
            blobs[key] = found.size_bytes
        on_progress(len(wanted), len(wanted))
        manifest = BackupManifest(catalog_id, datetime.now(UTC).isoformat(), content, blobs, elsewhere)
        data = manifest.to_json()
        target.add(MANIFEST, BytesIO(data), len(data))
        return manifest


def _add(target: BackupTarget, name: str, path: Path) -> BackedUpFile:
    with path.open("rb") as file:
        size_bytes = path.stat().st_size
        hashing = _Hashing(file)
        target.add(name, hashing, size_bytes)
        return BackedUpFile(hashing.digest, size_bytes)


def _other_source(key: BlobKey, sources: list[str], missing: FileNotFoundError) -> str:
    """A commit that a blob which left the disk can be had from again."""
    for source in sources:
        if pinned_location(source) is not None:
            return source
    raise NotFoundError(
        f"blob {key[1]} of tenant {key[0]} is not on the store's disk and comes from no commit: without it the backup "
        "would not be one; if the store keeps blobs in object storage too (blob_url), use the bucket's own versions",
        key[1],
    ) from missing
