"""Published blobs on a local disk: stage, sync, verify, rename, sync the directory, read-only.

`<root>/blobs/<tenant>/<first two hex digits>/<hex>`; stages in `<root>/stages`. Whatever is in `stages` when a
process starts was never acknowledged, and goes. Rotten blobs lie in `<root>/quarantine` for people to look at.
"""

import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hotslot.errors import BlobNotFoundError, DigestMismatchError
from hotslot.ids import Digest, TenantId
from store_service.content.files import make_directory, move_into_place, sync_directory
from store_service.content.keys import BlobKey
from store_service.execution.full_disk import no_room_is_a_quota

BLOBS_FOLDER = "blobs"
MAX_QUARANTINED = 16
"""Rotten blobs that are kept; the oldest go."""
_PREFIX = "sha256:"
_WHAT = "a new version"
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Found:
    """A blob on the disk."""

    key: BlobKey
    size_bytes: int
    modify_time_s: float


class LocalStage:
    """A blob being written to a file that nobody else knows."""

    def __init__(self, path: Path, blobs: "LocalBlobStore", tenant: TenantId) -> None:
        self._path = path
        self._blobs = blobs
        self._tenant = tenant
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        with no_room_is_a_quota(_WHAT):
            self._file = path.open("xb", buffering=0)

    def reserve(self, size_bytes: int) -> None:
        """Take the disk's room for so many bytes; raises QuotaExceededError."""
        with no_room_is_a_quota(_WHAT):
            os.posix_fallocate(self._file.fileno(), 0, size_bytes)

    def write(self, data: bytes | memoryview) -> None:
        """Append; raises QuotaExceededError when the disk is full."""
        with no_room_is_a_quota(_WHAT):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self._hash.update(data)
        self._size_bytes += len(data)

    def digest(self) -> Digest:
        """Of everything that was written so far."""
        return Digest(_PREFIX + self._hash.hexdigest())

    def publish(self, digest: Digest, size_bytes: int) -> None:
        """Make it durable and visible; raises DigestMismatchError when the bytes are not the digest's."""
        found = self.digest()
        if found != digest or self._size_bytes != size_bytes:
            self.discard()
            raise DigestMismatchError(f"blob of {self._size_bytes} bytes", found, digest)
        with no_room_is_a_quota(_WHAT):
            self._file.truncate(size_bytes)  # to no more than was reserved
            os.fsync(self._file.fileno())
            self._file.close()
            # Replacing a file of the same digest is harmless, and heals one that has rotted.
            self._blobs.take_in(self._path, self._tenant, digest)

    def discard(self) -> None:
        """Forget it; harmless after `publish`."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class LocalBlobStore:
    """Blobs below one folder of a local disk."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / BLOBS_FOLDER
        self._stages = root / "stages"
        self._quarantine = root / "quarantine"
        # Held while a name changes its file, so that what is put aside is the file that was looked at.
        self._naming = threading.Lock()
        shutil.rmtree(self._stages, ignore_errors=True)
        for folder in (self._blobs, self._stages, self._quarantine):
            make_directory(folder)

    def stage(self, tenant: TenantId) -> LocalStage:
        """Begin a new blob."""
        return LocalStage(self._stages / secrets.token_hex(16), self, tenant)

    def take_in(self, staged: Path, tenant: TenantId, digest: Digest) -> None:
        """Give a complete, synced and verified file its name."""
        with self._naming:
            move_into_place(staged, self.path(tenant, digest))

    def open(self, tenant: TenantId, digest: Digest) -> tuple[BinaryIO, int]:
        """A blob's bytes and their number; raises BlobNotFoundError."""
        try:
            file = self.path(tenant, digest).open("rb", buffering=0)
        except FileNotFoundError as exc:
            raise BlobNotFoundError(digest) from exc
        return file, os.fstat(file.fileno()).st_size

    def contains(self, tenant: TenantId, digest: Digest) -> bool:
        """Whether a blob is there."""
        return self.path(tenant, digest).is_file()

    def keep(self, tenant: TenantId, digest: Digest) -> None:
        """Nothing to do: blobs only leave when they are deleted."""

    def delete(self, tenant: TenantId, digest: Digest) -> None:
        """Remove a blob; harmless when it is not there."""
        self.path(tenant, digest).unlink(missing_ok=True)

    def digests(self) -> list[BlobKey]:
        """All blobs of all tenants."""
        return [found.key for found in self.found()]

    def found(self) -> Iterator[Found]:
        """All blobs of all tenants, with what their files say."""
        return found_below(self._blobs)

    def quarantine(self, tenant: TenantId, digest: Digest, rotten: BinaryIO) -> bool:
        """Put a blob's file aside, if it still is the open one; it is never served again."""
        path = self.path(tenant, digest)
        with self._naming:
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(rotten.fileno())):
                return False
            path.replace(self._quarantine / f"{tenant}-{path.name}")
            sync_directory(path.parent)
        kept = sorted(self._quarantine.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[MAX_QUARANTINED:]:
            old.unlink(missing_ok=True)
        return True

    def path(self, tenant: TenantId, digest: Digest) -> Path:
        """Where a blob is, if it is there."""
        hex_digits = digest.removeprefix(_PREFIX)
        return self._blobs / tenant / hex_digits[:2] / hex_digits


def found_below(folder: Path) -> Iterator[Found]:
    """The blobs in a folder; whatever else lies there is none of a store's business."""
    for path in folder.glob("*/*/*"):
        prefix, tenant = path.parent.name, path.parent.parent.name
        if _HEX.fullmatch(path.name) and path.name.startswith(prefix) and len(prefix) == 2:
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                yield Found((TenantId(tenant), Digest(_PREFIX + path.name)), status.st_size, status.st_mtime)
