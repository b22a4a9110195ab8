"""The one writer of content: of new blobs, of those that are brought back, of uploads and of compiled code."""

from collections.abc import Callable
from pathlib import Path

from hotslot.content_files import StagedFile
from hotslot.ids import Digest
from store_service.execution.full_disk import no_room_is_a_quota

TakeIn = Callable[[StagedFile, Digest], object]
"""Gives a staged file, which was found to have this digest, its place among others."""


class Writer:
    """Bytes on their way into a place; no reader sees them before they are published. Everything here blocks."""

    def __init__(
        self,
        path: Path,
        what: str,
        take_in: TakeIn,
        *,
        on_reserve: Callable[[int], object] = lambda size_bytes: None,
        on_write: Callable[[int], object] = lambda num_bytes: None,
        on_share: Callable[[], object] = lambda: None,
        on_close: Callable[[], object] = lambda: None,
        resumes: bool = False,
    ) -> None:
        """Stage at `path`; `what` names it in errors. One that `resumes` goes on with what an earlier one left there.
        `on_write` hears how many bytes there are after each write.

        Raises QuotaExceededError when the disk is full.
        """
        self.path = path
        """Place of the bytes until they are published."""
        self._what = what
        self._take_in = take_in
        self._on_reserve = on_reserve
        self._on_write = on_write
        self._on_share = on_share
        self._on_close = on_close
        self._resumes = resumes
        with no_room_is_a_quota(what):
            self._staged = StagedFile(path, resumes=resumes)

    @property
    def size_bytes(self) -> int:
        """Number of bytes written, by this writer and those that it resumes."""
        return self._staged.size_bytes

    def reserve(self, size_bytes: int) -> None:
        """Make sure of room before anything is written; raises QuotaExceededError."""
        self._on_reserve(size_bytes)
        with no_room_is_a_quota(self._what):
            self._staged.reserve(size_bytes)

    def write(self, data: bytes | memoryview) -> None:
        """Append; raises QuotaExceededError when the disk is full, and keeps what was written before."""
        with no_room_is_a_quota(self._what):
            self._staged.write(data)
        self._on_write(self._staged.size_bytes)

    def append(self, data: bytes | memoryview) -> None:
        """Write, and leave the digest to `digest_also`; raises as `write`."""
        with no_room_is_a_quota(self._what):
            self._staged.append(data)
        self._on_write(self._staged.size_bytes)

    def digest_also(self, data: bytes | memoryview) -> None:
        """Digest what is appended, all of it in its order; on another thread the two do not wait for each other."""
        self._staged.digest_also(data)

    def share(self) -> None:
        """See that a writer of another store can go on from here; raises StoreUnavailableError."""
        self._on_share()

    def restart(self) -> None:
        """Throw away what was written."""
        self._staged.restart()

    def digest(self) -> Digest:
        """Digest of everything written so far."""
        return self._staged.digest()

    def publish(self, digest: Digest, size_bytes: int) -> None:
        """Make it durable and visible under its digest.

        Raises DigestMismatchError when it is something else, after which nothing is written, QuotaExceededError and
        StoreUnavailableError; no caller was told then that it is there.
        """
        self._staged.verify(digest, size_bytes, self._what)
        with no_room_is_a_quota(self._what):
            self._take_in(self._staged, digest)

    def close(self) -> None:
        """Let go: what was not published is kept for a writer that resumes, and otherwise goes."""
        try:
            if self._resumes:
                self._staged.keep()
            else:
                self._staged.discard()
        finally:
            self._on_close()
