"""Published blobs on a local disk: stage, sync, verify, rename, sync the directory, read-only.

`<root>/blobs/<tenant>/<first two hex digits>/<hex>`; stages in `<root>/stages`. Whatever is in `stages` when a
process starts was never acknowledged, and goes.
"""

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import BinaryIO

from shared.errors import BlobNotFoundError, DigestMismatchError
from shared.ids import Digest, TenantId
from store_service.blobs.files import make_directory, move_into_place, no_room_is_a_quota

_PREFIX = "sha256:"


class LocalStage:
    """A blob being written to a file that nobody else knows."""

    def __init__(self, path: Path, blobs: "LocalBlobStore", tenant: TenantId) -> None:
        self._path = path
        self._blobs = blobs
        self._tenant = tenant
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._file = path.open("xb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Append; raises QuotaExceededError when the disk is full."""
        with no_room_is_a_quota("a new version"):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self._hash.update(data)
        self._size_bytes += len(data)

    def publish(self, digest: Digest, size_bytes: int) -> None:
        """Make it durable and visible; raises DigestMismatchError when the bytes are not the digest's."""
        found = Digest(_PREFIX + self._hash.hexdigest())
        if found != digest or self._size_bytes != size_bytes:
            self.discard()
            raise DigestMismatchError(f"blob of {self._size_bytes} bytes", found, digest)
        with no_room_is_a_quota("a new version"):
            os.fsync(self._file.fileno())
        self._file.close()
        # Replacing a file of the same digest is harmless, and heals one that has rotted.
        move_into_place(self._path, self._blobs.path(self._tenant, digest))

    def discard(self) -> None:
        """Forget it; harmless after `publish`."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class LocalBlobStore:
    """Blobs below one folder of a local disk."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._stages = root / "stages"
        shutil.rmtree(self._stages, ignore_errors=True)
        make_directory(self._blobs)
        make_directory(self._stages)

    def stage(self, tenant: TenantId) -> LocalStage:
        """Begin a new blob."""
        return LocalStage(self._stages / secrets.token_hex(16), self, tenant)

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

    def delete(self, tenant: TenantId, digest: Digest) -> None:
        """Remove a blob; harmless when it is not there."""
        self.path(tenant, digest).unlink(missing_ok=True)

    def digests(self) -> list[tuple[TenantId, Digest]]:
        """All blobs of all tenants."""
        return [(TenantId(path.parent.parent.name), Digest(_PREFIX + path.name)) for path in self._blobs.glob("*/*/*")]

    def path(self, tenant: TenantId, digest: Digest) -> Path:
        """Where a blob is, if it is there."""
        hex_digits = digest.removeprefix(_PREFIX)
        return self._blobs / tenant / hex_digits[:2] / hex_digits
