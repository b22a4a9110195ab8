"""Content under a key: workers' compiled code, by tenant and key, which the store neither reads nor believes.

`<root>/<tenant>/<hex of the key>`; stages in `<root>/.stages`. Its readers trust the seal that is in it. Losing all of
it costs workers time, nothing else. Everything here blocks.
"""

import os
import secrets
import shutil
import threading
from pathlib import Path
from typing import BinaryIO

from hotslot.content_files import READ_ONLY, StagedFile, make_directory
from hotslot.errors import CompiledCodeNotFoundError, QuotaExceededError
from hotslot.ids import Digest, TenantId, hex_of
from store_service.content.writer import Writer


class KeyedContent:
    """One tenant's content by key, under a budget; the least recently read or written goes first."""

    def __init__(self, root: Path, tenant: TenantId, max_bytes: int) -> None:
        """`max_bytes` is for all of it together; 0 keeps none."""
        self.tenant = tenant
        self.max_bytes = max_bytes
        self._folder = root / tenant
        self._stages = root / ".stages"
        self._changing = threading.Lock()
        shutil.rmtree(self._stages, ignore_errors=True)

    def open(self, key: Digest) -> tuple[BinaryIO, int]:
        """Bytes of a key, and their number; raises CompiledCodeNotFoundError."""
        try:
            file = self._path(key).open("rb", buffering=0)
        except FileNotFoundError as exc:
            raise CompiledCodeNotFoundError(key) from exc
        os.utime(file.fileno())
        return file, os.fstat(file.fileno()).st_size

    def writer(self, key: Digest, size_bytes: int) -> Writer:
        """Begin content of so many bytes for a key, in place of what it has; raises QuotaExceededError."""
        if size_bytes > self.max_bytes:
            message = f"the archive has {size_bytes} bytes, the store keeps {self.max_bytes} of compiled code"
            raise QuotaExceededError(message, subject="compiled_code_bytes")
        make_directory(self._stages)
        return Writer(
            self._stages / secrets.token_hex(16),
            "compiled code",
            lambda staged, _: self._take_in(staged, key),
        )

    def _take_in(self, staged: StagedFile, key: Digest) -> None:
        with self._changing:
            staged.publish(self._path(key), mode=READ_ONLY)
            files = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self._folder.iterdir())
            used_bytes = sum(size_bytes for _, size_bytes, _ in files)
            for _, size_bytes, path in files:
                if used_bytes <= self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                used_bytes -= size_bytes

    def _path(self, key: Digest) -> Path:
        return self._folder / hex_of(key)
