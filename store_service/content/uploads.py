"""Files on their way to admission, on a local disk; they resume by offset, also across restarts of the store.

`<root>/uploads/<tenant>/<hex>.part` while bytes arrive, `<hex>` once complete and verified. Admission reads
complete ones only, digested once more, and nobody can download either.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hotslot.errors import BlobNotFoundError, DigestMismatchError, QuotaExceededError, UploadBusyError
from hotslot.ids import Digest, TenantId
from store_service.content.files import digest_of_file, make_directory, move_into_place
from store_service.execution.full_disk import no_room_is_a_quota

_PREFIX = "sha256:"
_HASH_BLOCK_BYTES = 1024 * 1024


class LocalUpload:
    """One stream's hold on an upload."""

    def __init__(self, store: "LocalUploadStore", tenant: TenantId, digest: Digest, size_bytes: int) -> None:
        self._store = store
        self._key = (tenant, digest)
        self._digest = digest
        self._size_bytes = size_bytes
        self._target = store.complete_path(tenant, digest)
        self._part = self._target.with_suffix(".part")
        self._hash = hashlib.sha256()
        self.committed_size = 0
        """Bytes received."""
        self.is_complete = self._target.is_file()
        """Whether all bytes are there and verified."""
        if self.is_complete:
            self.committed_size = self._target.stat().st_size
            os.utime(self._target)  # somebody wants it: it is not old
            return
        make_directory(self._target.parent)
        self._file = self._part.open("ab+", buffering=0)
        self._file.seek(0)
        while block := self._file.read(_HASH_BLOCK_BYTES):
            self._hash.update(block)
            self.committed_size += len(block)
        if self.committed_size > size_bytes:
            self._restart()

    def write(self, data: bytes) -> None:
        """Append; raises QuotaExceededError when the disk is full, keeping what was received before."""
        assert self.committed_size + len(data) <= self._size_bytes, "the caller checks against the declared size"
        try:
            with no_room_is_a_quota(f"upload {self._digest}"):
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
        except QuotaExceededError:
            self._file.truncate(self.committed_size)
            raise
        self._hash.update(data)
        self.committed_size += len(data)

    def finish(self) -> None:
        """Verify and keep; raises DigestMismatchError, after which the upload begins anew."""
        found = Digest(_PREFIX + self._hash.hexdigest())
        if found != self._digest:
            self._restart()
            raise DigestMismatchError(f"upload of {self._size_bytes} bytes", found, self._digest)
        with no_room_is_a_quota(f"upload {self._digest}"):
            os.fsync(self._file.fileno())
        move_into_place(self._part, self._target)
        self.is_complete = True

    def close(self) -> None:
        """Let go; what was received is kept for whoever continues."""
        if hasattr(self, "_file") and not self._file.closed:
            if not self.is_complete:
                os.fsync(self._file.fileno())
            self._file.close()
        self._store.release(self._key)

    def _restart(self) -> None:
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.committed_size = 0


class LocalUploadStore:
    """Uploads below one folder of a local disk."""

    def __init__(self, root: Path, *, max_upload_bytes: int) -> None:
        self._root = root / "uploads"
        self._max_upload_bytes = max_upload_bytes
        self._busy: set[tuple[TenantId, Digest]] = set()
        self._lock = threading.Lock()
        make_directory(self._root)

    def begin(self, tenant: TenantId, digest: Digest, size_bytes: int) -> LocalUpload:
        """Take or continue an upload; raises UploadBusyError and QuotaExceededError."""
        if size_bytes > self._max_upload_bytes:
            raise QuotaExceededError(
                f"upload {digest} has {size_bytes} bytes, at most {self._max_upload_bytes} are taken",
                subject="max_upload_bytes",
            )
        with self._lock:
            if (tenant, digest) in self._busy:
                raise UploadBusyError(digest)
            self._busy.add((tenant, digest))
        try:
            return LocalUpload(self, tenant, digest, size_bytes)
        except BaseException:
            self.release((tenant, digest))
            raise

    def release(self, key: tuple[TenantId, Digest]) -> None:
        """End a stream's hold."""
        with self._lock:
            self._busy.discard(key)

    def status(self, tenant: TenantId, digest: Digest) -> tuple[int, bool]:
        """Bytes received and whether complete; (0, False) for an unknown upload."""
        complete = self.complete_path(tenant, digest)
        for path, is_complete in ((complete, True), (complete.with_suffix(".part"), False)):
            try:
                return path.stat().st_size, is_complete
            except FileNotFoundError:
                continue
        return 0, False

    def path(self, tenant: TenantId, digest: Digest) -> Path:
        """A complete upload's file, which is not old from now on; raises BlobNotFoundError."""
        path = self.complete_path(tenant, digest)
        with self._lock:
            try:
                os.utime(path)
            except FileNotFoundError as exc:
                raise BlobNotFoundError(digest) from exc
        return path

    def verified_path(self, tenant: TenantId, digest: Digest) -> Path:
        """`path`, of bytes that are still what the digest says; raises DigestMismatchError, and then it is gone."""
        path = self.path(tenant, digest)
        try:
            file = path.open("rb")
        except FileNotFoundError as exc:
            raise BlobNotFoundError(digest) from exc
        with file:
            found = digest_of_file(file)
            if found == digest:
                return path
            status = os.fstat(file.fileno())
        with self._lock, suppress(FileNotFoundError):
            if os.path.samestat(status, path.stat()):  # or somebody has sent it again by now
                path.unlink()
        raise DigestMismatchError(f"upload of {status.st_size} bytes, which was whole when it came", found, digest)

    def complete_path(self, tenant: TenantId, digest: Digest) -> Path:
        """Where a complete upload is, if it is there."""
        return self._root / tenant / digest.removeprefix(_PREFIX)

    def marks(self) -> dict[str, str]:
        """The files that no stream holds, each with what changes when it is asked for or written to."""
        found: dict[str, str] = {}
        for path in self._root.glob("*/*"):
            with suppress(FileNotFoundError):
                if path.is_file() and _key(path) not in self._busy:
                    found[_name(path)] = str(path.stat().st_mtime_ns)
        return found

    def collect(
        self,
        *,
        older_than_s: float,
        now_unix_s: float | None = None,
        is_due: Callable[[str], bool] = lambda name: True,
    ) -> int:
        """Remove what was not touched for so long, of what is due by its name in `marks`; returns how many went."""
        now = time.time() if now_unix_s is None else now_unix_s
        num_removed = 0
        for path in self._root.glob("*/*"):
            with self._lock:
                # Since the listing a part may have become a complete file of another name.
                if (
                    is_due(_name(path))
                    and _key(path) not in self._busy
                    and path.is_file()
                    and now - path.stat().st_mtime > older_than_s
                ):
                    path.unlink()
                    num_removed += 1
        return num_removed


def _key(path: Path) -> tuple[TenantId, Digest]:
    return TenantId(path.parent.name), Digest(_PREFIX + path.stem)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
