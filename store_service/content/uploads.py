"""Files on their way to admission, on a local disk; they resume by offset, also across restarts of the store.

`<root>/uploads/<tenant>/<hex>.part` while bytes arrive, `<hex>` once complete and verified; where several stores may
share a catalog, parts of them are in object storage too (`upload_parts`). Admission reads complete ones only, digested
once more, and no tenant can download either. Everything here blocks.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hotslot.content_files import READ_ONLY, StagedFile, digest_of_file, make_directory
from hotslot.contract.quotas import QuotaKind
from hotslot.errors import (
    BlobNotFoundError,
    DigestMismatchError,
    QuotaExceededError,
    TenantQuotaError,
    UploadBusyError,
)
from hotslot.ids import Digest, TenantId, digest_of_hex, hex_of
from shared.quotas.limits import TenantLimits
from store_service.content.keys import BlobKey
from store_service.content.upload_parts import UploadParts, UploadSharing
from store_service.content.waiting import UploadMark
from store_service.content.writer import Writer
from store_service.execution.full_disk import no_room_is_a_quota
from store_service.execution.unwanted import stop_if_unwanted

BRING_S = 30.0
"""Longest wait for another call that fetches the same upload from where other stores find it."""
IDLE_UPLOAD_S = 600.0
"""Time after which a whole upload that nobody asked for gives way to others of its tenant."""


class UploadFolder:
    """Uploads below one folder of a local disk."""

    def __init__(
        self,
        root: Path,
        *,
        max_upload_bytes: int,
        limits: TenantLimits | None = None,
        parts: UploadParts | None = None,
    ) -> None:
        """`parts` are where the stores of one catalog find each other's uploads."""
        self._root = root / "uploads"
        self._max_upload_bytes = max_upload_bytes
        self._limits = limits or TenantLimits()
        self._parts = parts
        self._busy: dict[BlobKey, int] = {}
        """Uploads that a writer has, with the bytes that they will have."""
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        make_directory(self._root)

    def begin(self, tenant: TenantId, digest: Digest, size_bytes: int) -> Writer | None:
        """Take or continue an upload, for one writer at a time; None where it is complete.

        Raises UploadBusyError, QuotaExceededError, and TenantQuotaError for more uploads than the tenant may keep.
        """
        if size_bytes > self._max_upload_bytes:
            raise QuotaExceededError(
                f"upload {digest} has {size_bytes} bytes, at most {self._max_upload_bytes} are taken",
                subject="max_upload_bytes",
            )
        key = tenant, digest
        with self._lock:
            if key in self._busy:
                raise UploadBusyError(digest)
            self._busy[key] = size_bytes
        try:
            complete = self._complete_path(tenant, digest)
            if complete.is_file():
                os.utime(complete)  # It is wanted, and so not old.
                self._release(key)
                return None
            make_directory(complete.parent)
            self._make_room(tenant)
            if self._parts is not None and self._bring(key, self._parts):
                self._release(key)
                return None
            part = complete.with_suffix(".part")
            sharing = UploadSharing(self._parts, key, part, size_bytes)

            def take_in(staged: StagedFile, _: Digest) -> None:
                sharing.finish()
                staged.publish(complete, mode=READ_ONLY)

            writer = Writer(
                part,
                f"upload {digest}",
                take_in,
                on_write=sharing.wrote,
                on_share=sharing.share,
                on_close=lambda: self._end(key, sharing),
                resumes=True,
            )
        except BaseException:
            self._release(key)
            raise
        if writer.size_bytes > size_bytes:
            writer.restart()
        return writer

    def _end(self, key: BlobKey, sharing: UploadSharing) -> None:
        try:
            sharing.end()
        finally:
            self._release(key)

    def _bring(self, key: BlobKey, parts: UploadParts) -> bool:
        """Append what other stores have of an upload to what lies here; true where it is whole then, and verified."""
        complete = self._complete_path(*key)
        found = parts.chain(key)
        make_directory(complete.parent)
        with no_room_is_a_quota(f"upload {key[1]}"):
            staged = StagedFile(complete.with_suffix(".part"), resumes=True)
        try:
            with no_room_is_a_quota(f"upload {key[1]}"), suppress(BlobNotFoundError):
                for data in parts.read(found, staged.size_bytes):
                    staged.write(data)
            if not found.is_whole or staged.size_bytes != found.num_bytes:
                return False
            if staged.digest() != key[1]:
                staged.restart()
                parts.discard(key)
                return False
            staged.publish(complete, mode=READ_ONLY)
            return True
        finally:
            staged.keep()

    def status(self, tenant: TenantId, digest: Digest) -> tuple[int, bool]:
        """Number of bytes received, by whichever store, and true if they are all; (0, False) for an unknown upload."""
        complete = self._complete_path(tenant, digest)
        num_bytes = 0
        for path, is_complete in ((complete, True), (complete.with_suffix(".part"), False)):
            with suppress(FileNotFoundError):
                num_bytes = path.stat().st_size
                if is_complete:
                    return num_bytes, True
        if self._parts is None:
            return num_bytes, False
        found = self._parts.chain((tenant, digest))
        return max(num_bytes, found.num_bytes), found.is_whole

    def touch(self, tenant: TenantId, digest: Digest) -> None:
        """Keep a complete upload that lies here from being old; harmless for any other."""
        with self._lock, suppress(FileNotFoundError):
            os.utime(self._complete_path(tenant, digest))

    def path(self, tenant: TenantId, digest: Digest) -> Path:
        """A complete upload's file, which never changes and is not old from now on; raises BlobNotFoundError."""
        path = self._complete_path(tenant, digest)
        for may_come in (self._parts is not None, False):
            with self._lock, suppress(FileNotFoundError):
                os.utime(path)
                return path
            if may_come:
                self._bring_whole((tenant, digest))
        raise BlobNotFoundError(digest)

    def _bring_whole(self, key: BlobKey) -> None:
        """Fetch an upload that is whole elsewhere; raises UploadBusyError while a stream writes it here."""
        assert self._parts is not None, "nothing comes where nothing is shared"
        if not self._parts.chain(key).is_whole:
            return
        with self._lock:
            # Another call may be bringing it; what a client's stream writes here is not waited for.
            self._freed.wait_for(lambda: self._busy.get(key, 1) > 0, BRING_S)
            if key in self._busy:
                raise UploadBusyError(key[1])
            if self._complete_path(*key).is_file():
                return
            self._busy[key] = 0
        try:
            self._bring(key, self._parts)
        finally:
            self._release(key)

    def verified_path(self, tenant: TenantId, digest: Digest) -> Path:
        """`path`, of bytes that are still the digest's; raises DigestMismatchError, and then it is gone."""
        path = self.path(tenant, digest)
        try:
            file = path.open("rb")
        except FileNotFoundError as exc:
            raise BlobNotFoundError(digest) from exc
        with file:
            found = digest_of_file(file, lambda _: stop_if_unwanted())
            if found == digest:
                return path
            status = os.fstat(file.fileno())
        with self._lock, suppress(FileNotFoundError):
            if os.path.samestat(status, path.stat()):  # or it has been sent again by now
                path.unlink()
        raise DigestMismatchError(f"upload of {status.st_size} bytes, which was whole when it came", found, digest)

    def found(self) -> dict[str, UploadMark]:
        """The files that no stream holds, by their names."""
        found: dict[str, UploadMark] = {}
        for path in self._root.glob("*/*"):
            with suppress(FileNotFoundError):
                if path.is_file() and _key(path) not in self._busy:
                    status = path.stat()
                    mark = UploadMark(path.parent.name, str(status.st_mtime_ns), status.st_size, status.st_mtime)
                    found[_name(path)] = mark
        return found

    def collect(
        self,
        *,
        older_than_s: float,
        now_unix_s: float | None = None,
        is_due: Callable[[str], bool] = lambda name: True,
        on_removed: Callable[[str], None] = lambda name: None,
    ) -> int:
        """Remove files not touched for so long, of those due by their name in `found`; returns how many went."""
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
                    on_removed(_name(path))
                    num_removed += 1
        return num_removed

    def _make_room(self, tenant: TenantId) -> None:
        """Bound the uploads of a tenant that wait by its bytes; raises TenantQuotaError.

        Whole ones that were not asked for a while go, the oldest first: their owners can send them again. What can be
        gone on with, or is about to be admitted, stays.
        """
        limit = self._limits.of(tenant).get(QuotaKind.BYTES)
        if limit is None:
            return
        with self._lock:
            coming = {key: size for key, size in self._busy.items() if key[0] == tenant}
            idle = [(path, path.stat()) for path in (self._root / tenant).iterdir() if _key(path) not in coming]
            kept = sum(status.st_size for _, status in idle)
            for path, status in sorted(idle, key=lambda each: each[1].st_mtime):
                is_needed = path.suffix or time.time() - status.st_mtime < IDLE_UPLOAD_S
                if kept + sum(coming.values()) > limit and not is_needed:
                    path.unlink()
                    kept -= status.st_size
        if kept + sum(coming.values()) > limit:
            advice = "uploads that wait count too: publish, or wait until the store forgets them"
            raise TenantQuotaError(
                tenant, QuotaKind.BYTES.value, limit, kept, advice=advice, retry_after_s=IDLE_UPLOAD_S
            )

    def _complete_path(self, tenant: TenantId, digest: Digest) -> Path:
        return self._root / tenant / hex_of(digest)

    def _release(self, key: BlobKey) -> None:
        with self._lock:
            self._busy.pop(key, None)
            self._freed.notify_all()


def _key(path: Path) -> BlobKey:
    return TenantId(path.parent.name), digest_of_hex(path.stem)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
