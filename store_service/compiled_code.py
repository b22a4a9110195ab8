"""Workers' compiled code, by tenant and key, below one folder: bytes that the store neither reads nor believes.

`<root>/<tenant>/<hex of the key>`; stages in `<root>/.stages`. Losing all of it costs workers time, nothing else.
Everything here blocks: call it from a thread, never on the event loop.
"""

import hashlib
import os
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hotslot.errors import (
    CompiledCodeNotFoundError,
    DigestMismatchError,
    FieldViolation,
    ForbiddenError,
    InvalidRequestError,
    QuotaExceededError,
)
from hotslot.ids import Digest, TenantId
from store_service.content.files import make_directory, move_into_place

_PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class CompiledCodeOptions:
    """For whom, and how much."""

    max_bytes: int
    """Of all archives together; 0 keeps none."""
    tenant: TenantId


class CompiledCodeStage:
    """An archive that is being received."""

    def __init__(self, store: "CompiledCodeStore", key: Digest, digest: Digest, size_bytes: int, path: Path) -> None:
        self._store, self._key, self._digest, self._size_bytes, self._path = store, key, digest, size_bytes, path
        self._hash = hashlib.sha256()
        self._received = 0
        self._file = path.open("xb")

    def write(self, data: bytes) -> None:
        """Append; raises QuotaExceededError beyond the size that was announced."""
        self._received += len(data)
        if self._received > self._size_bytes:
            message = f"the archive was to have {self._size_bytes} bytes, and {self._received} or more came"
            raise QuotaExceededError(message, subject="size_bytes")
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Make it visible under its key; raises DigestMismatchError."""
        self._file.close()
        found = Digest(_PREFIX + self._hash.hexdigest())
        if found != self._digest:
            raise DigestMismatchError(f"compiled code of {self._received} bytes", found, self._digest)
        self._store.take_in(self._path, self._key)

    def discard(self) -> None:
        """Forget it; harmless after `finish`."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class CompiledCodeStore:
    """Archives under a budget; the least recently read or written go first."""

    def __init__(self, root: Path, options: CompiledCodeOptions) -> None:
        self._folder = root / options.tenant
        self._stages = root / ".stages"
        self._options = options
        self._changing = threading.Lock()
        shutil.rmtree(self._stages, ignore_errors=True)

    def open(self, tenant: TenantId, key: Digest) -> tuple[BinaryIO, int]:
        """An archive's bytes and their number; raises ForbiddenError and CompiledCodeNotFoundError."""
        self._check(tenant)
        try:
            file = self._path(key).open("rb")
        except FileNotFoundError as exc:
            raise CompiledCodeNotFoundError(key) from exc
        os.utime(file.fileno())
        return file, os.fstat(file.fileno()).st_size

    def stage(self, tenant: TenantId, key: Digest, digest: Digest, size_bytes: int) -> CompiledCodeStage:
        """Begin an archive; raises ForbiddenError, InvalidRequestError and QuotaExceededError."""
        self._check(tenant)
        if size_bytes < 1:
            raise InvalidRequestError([FieldViolation("size_bytes", f"found {size_bytes}, expected 1 or more")])
        if size_bytes > self._options.max_bytes:
            message = f"the archive has {size_bytes} bytes, the store keeps {self._options.max_bytes} of compiled code"
            raise QuotaExceededError(message, subject="compiled_code_bytes")
        make_directory(self._stages)
        return CompiledCodeStage(self, key, digest, size_bytes, self._stages / secrets.token_hex(16))

    def take_in(self, staged: Path, key: Digest) -> None:
        """Give a complete archive its name, and make room for it."""
        with self._changing:
            move_into_place(staged, self._path(key))
            files = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self._folder.iterdir())
            used_bytes = sum(size_bytes for _, size_bytes, _ in files)
            for _, size_bytes, path in files:
                if used_bytes <= self._options.max_bytes:
                    break
                path.unlink(missing_ok=True)
                used_bytes -= size_bytes

    def _path(self, key: Digest) -> Path:
        return self._folder / key.removeprefix(_PREFIX)

    def _check(self, tenant: TenantId) -> None:
        if not self._options.max_bytes:
            raise ForbiddenError("this store keeps no compiled code; HOTSLOT_COMPILED_CODE_BYTES turns it on")
        if tenant != self._options.tenant:
            raise ForbiddenError(f"this store keeps no compiled code for tenant {tenant!r}")
