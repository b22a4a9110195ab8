"""Blobs on a local disk under a byte budget, shared by the workers of a machine. Everything here blocks.

`<folder>/<64 hex digits>` are blobs, their modification time is their last use; `.stage-…` are being written, each
under a lock that ends with its writer; `.lock` is held while room is made. No file is believed: a blob that is not its
digest's any more is removed when it is read. The name is the digest for the default tenant; for another one eight
digits of the tenant, and of tenant and digest together, so that each has its own and all of a tenant's are known.
"""

import contextlib
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from hotslot.content_files import PRIVATE, StagedFile
from hotslot.file_lock import lock, try_lock
from hotslot.ids import DEFAULT_TENANT, DIGEST_HEX, Digest, TenantId, digest_of, hex_of
from shared.recycled_memory import RecycledMemory
from worker_service.adapters.host_shares import Kept, leaving

log = structlog.get_logger(__name__)

_STAGE = ".stage-"
MARK_DIGITS = 8
"""Digits of a name that tell the tenant, unless it is the default one."""


def disk_name(tenant: TenantId, digest: Digest) -> str:
    """Name of a tenant's blob. The default tenant's is the digest, as folders of earlier workers have it."""
    if tenant == DEFAULT_TENANT:
        return hex_of(digest)
    mark, rest = (hashlib.sha256(text.encode()).hexdigest() for text in (tenant, f"{tenant} {digest}"))
    return mark[:MARK_DIGITS] + rest[MARK_DIGITS:]


@dataclass(frozen=True, slots=True)
class _Blob:
    last_use_ns: int
    size_bytes: int
    name: str


class DiskFiles:
    """One folder. Any number of these, in any number of processes, may share it; they should have the same budget."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        """Raises OSError when the folder cannot be used."""
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._memory = RecycledMemory()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock():
            self._sweep_stages()

    def names(self) -> frozenset[str]:
        """Names of the blobs that are there, unverified."""
        return frozenset(blob.name for blob in self._blobs())

    def read(self, digest: Digest, size_bytes: int, name: str = "") -> memoryview | None:
        """A blob's verified bytes; None when it is not there, or is rotten and therefore gone. Raises OSError."""
        path = self._path(name or hex_of(digest))
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        with file:
            if os.fstat(file.fileno()).st_size == size_bytes:
                # Into memory of our own: what was verified there cannot change any more.
                data = self._memory.take(size_bytes)
                if _read_into(file.fileno(), data) and digest_of(data) == digest:
                    os.utime(file.fileno())
                    return data
        log.warning("disk_blob_rotten", digest=digest, folder=str(self._folder))
        path.unlink(missing_ok=True)
        return None

    def write(self, digest: Digest, data: bytes | bytearray | memoryview, name: str = "") -> bool:
        """Keep a blob, those of tenants with most making room; False when there cannot be any. Raises OSError."""
        name = name or hex_of(digest)
        with self._lock():
            if not self._make_room(len(data), name):
                return False
            # Not digested, and not synced: whatever becomes of it, it is verified when it is read.
            staged = StagedFile(self._folder / f"{_STAGE}{secrets.token_hex(8)}", mode=PRIVATE, digests=False)
            try:
                lock(staged.fileno())
                staged.reserve(len(data))  # counts from now on
            except OSError:
                staged.discard()
                raise
        try:
            staged.write(data)
            staged.publish(self._path(name), is_durable=False)
        finally:
            staged.discard()
        return True

    def remove(self, name: str) -> None:
        """Remove a blob; harmless when it is not there. Raises OSError."""
        self._path(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = os.open(self._folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, size_bytes: int, name: str) -> bool:
        if size_bytes > self._budget_bytes:
            return False
        # Stages first: one that gets its name meanwhile then counts twice rather than not at all.
        staged_bytes = self._sweep_stages()
        blobs = sorted(self._blobs(), key=lambda blob: blob.last_use_ns)
        needed = staged_bytes + sum(blob.size_bytes for blob in blobs) + size_bytes - self._budget_bytes
        if needed <= 0:
            return True
        # A name that shares its beginning with no other is of the default tenant, or of one with a single blob.
        marks = Counter(blob.name[:MARK_DIGITS] for blob in blobs)
        marks[name[:MARK_DIGITS]] += 1
        owner_of = {mark: mark if count > 1 else "" for mark, count in marks.items()}
        kept = [Kept(blob.name, blob.size_bytes, (owner_of[blob.name[:MARK_DIGITS]],)) for blob in blobs]
        left = leaving(kept, [owner_of[name[:MARK_DIGITS]]], size_bytes, needed)
        for each in left or [blob.name for blob in blobs]:
            (self._folder / each).unlink(missing_ok=True)
        return left is not None

    def _sweep_stages(self) -> int:
        """Remove what writers left behind that are gone; returns the bytes of those under way."""
        used_bytes = 0
        for stage in self._folder.glob(f"{_STAGE}*"):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(stage, os.O_RDONLY)
                try:
                    if try_lock(descriptor):
                        stage.unlink()
                    else:
                        used_bytes += os.fstat(descriptor).st_size
                finally:
                    os.close(descriptor)
        return used_bytes

    def _blobs(self) -> Iterator[_Blob]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if DIGEST_HEX.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield _Blob(status.st_mtime_ns, status.st_size, entry.name)

    def _path(self, name: str) -> Path:
        return self._folder / name


def _read_into(descriptor: int, data: memoryview) -> bool:
    """Fill the whole of `data`; False when the file ends before."""
    left = data
    while left:
        count = os.readv(descriptor, [left])
        if not count:
            return False
        left = left[count:]
    return True
