"""Takes a backup of a store, of whatever kinds its places are, whether or not it runs.

The catalog is copied first, in one of its states, then the blobs that this state refers to: those never change, and
the store removes none meanwhile. So each version that was acknowledged before, and not deleted since, is in the backup
with its weights.
"""

import hashlib
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from hotslot.content_files import Readable
from hotslot.errors import BlobNotFoundError, DigestMismatchError, NotFoundError
from hotslot.formats.file_names import CATALOG_FILE
from hotslot.ids import Digest
from store_service.backup.catalog_copy import check_catalog, forget_versions, referenced_blobs
from store_service.backup.manifest import MANIFEST, BackedUpFile, BackupManifest
from store_service.backup.places import BackupTarget
from store_service.backup.store_places import StorePlaces, blobs_at, catalog_at, removing_nothing
from store_service.content.keys import BlobKey, blob_name
from store_service.sources.sources import pinned_location

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
    places: StorePlaces, target: BackupTarget, on_progress: OnCopied = lambda done, of: None
) -> BackupManifest:
    """Write a backup; it is complete once this returns.

    Raises NotFoundError where there is no store, or a blob is missing that cannot be had again, DigestMismatchError for
    one that has rotted, CatalogDamagedError, PreconditionError and StoreUnavailableError.
    """
    live, published = catalog_at(places), blobs_at(places)
    with removing_nothing(places), tempfile.TemporaryDirectory(prefix="hotslot-backup-") as scratch:
        copy = Path(scratch) / CATALOG_FILE
        live.copy_to(copy)
        catalog_id = check_catalog(copy)
        wanted = referenced_blobs(copy)
        blobs: dict[BlobKey, int] = {}
        elsewhere: dict[BlobKey, str] = {}
        deleted: list[BlobKey] = []
        for number, (key, sources) in enumerate(sorted(wanted.items())):
            on_progress(number, len(wanted))
            try:
                with published.open(key) as (file, size_bytes):
                    found = _add(target, blob_name(key), file, size_bytes)
            except BlobNotFoundError as exc:
                commit = next((source for source in sources if pinned_location(source) is not None), None)
                if commit is not None:
                    elsewhere[key] = commit
                elif live.refers_to(key):
                    raise _missing(key, places) from exc
                else:
                    # Another machine's store removed it, once its versions had been deleted.
                    deleted.append(key)
                continue
            if found.digest != key[1]:
                what = f"blob {key[1]} of tenant {key[0]} in {places.blobs_name} (reading it from the store repairs it)"
                raise DigestMismatchError(what, found.digest, key[1])
            blobs[key] = found.size_bytes
        on_progress(len(wanted), len(wanted))
        if deleted:
            forget_versions(copy, deleted)
        with copy.open("rb") as file:
            content = _add(target, CATALOG_FILE, file, copy.stat().st_size)
        manifest = BackupManifest(catalog_id, datetime.now(UTC).isoformat(), content, blobs, elsewhere)
        data = manifest.to_json()
        target.add(MANIFEST, BytesIO(data), len(data))
        return manifest


def _add(target: BackupTarget, name: str, file: Readable, size_bytes: int) -> BackedUpFile:
    hashing = _Hashing(file)
    target.add(name, hashing, size_bytes)
    return BackedUpFile(hashing.digest, size_bytes)


def _missing(key: BlobKey, places: StorePlaces) -> NotFoundError:
    return NotFoundError(
        f"blob {key[1]} of tenant {key[0]} is not in {places.blobs_name} and comes from no commit: without it the "
        "backup would not be one; delete the versions that need it, or bring it back",
        key[1],
    )
