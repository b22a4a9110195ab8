"""Files of content: staged under a name that no reader knows, verified, made durable, and only then given their own."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from hotslot.errors import DigestMismatchError
from hotslot.ids import Digest, digest_of_hex

READ_ONLY = 0o444
PRIVATE = 0o600
PRIVATE_DIRECTORY = 0o700
BLOCK_BYTES = 1024 * 1024


class Readable(Protocol):
    """Bytes that are read once, from their beginning to their end."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, none at the end."""


class StagedFile:
    """A file being written, digested on the way; in the end it is published, discarded, or kept to be resumed."""

    def __init__(self, path: Path, *, mode: int = 0o666, resumes: bool = False, digests: bool = True) -> None:
        """Begin a new file, or, with `resumes`, go on with what an earlier writer kept.

        `digests` is off where a reader verifies anyway; then nothing is known here about the digest. Raises OSError.
        """
        self._path = path
        self._digests = digests
        flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if resumes else os.O_EXCL)
        self._file = os.fdopen(os.open(path, flags, mode), "rb+", buffering=0)
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        """Number of bytes written, by this writer and those before it."""
        if resumes:
            try:
                self.size_bytes = read_blocks(self._file, self._hash.update)
            except BaseException:
                self._file.close()
                raise

    def fileno(self) -> int:
        """Descriptor of the file, for locks."""
        return self._file.fileno()

    def reserve(self, size_bytes: int) -> None:
        """Take the disk's room for so many bytes; raises OSError."""
        if size_bytes:  # The call takes no 0, which an object that lost its bytes asks for.
            os.posix_fallocate(self._file.fileno(), 0, size_bytes)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of it; raises OSError, and then none of it is there."""
        self.append(data)
        if self._digests:
            self.digest_also(data)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Append as `write` does, and leave the digest to `digest_also`, which may be called on another thread."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self._file.truncate(self.size_bytes)
            raise
        self.size_bytes += len(data)

    def digest_also(self, data: bytes | bytearray | memoryview) -> None:
        """Digest what is appended, all of it in its order."""
        self._hash.update(data)

    def flush(self) -> None:
        """Do nothing, for writers of archives: what is written is not buffered here."""

    def digest(self) -> Digest:
        """Digest of everything written so far."""
        assert self._digests, "what is not digested has no digest"
        return digest_of_hex(self._hash.hexdigest())

    def verify(self, digest: Digest, size_bytes: int, what: str) -> None:
        """Compare what was written with what it should be; raises DigestMismatchError, and then all of it is gone."""
        found, found_bytes = self.digest(), self.size_bytes
        if found != digest or found_bytes != size_bytes:
            self.restart()
            raise DigestMismatchError(f"{what} of {found_bytes} bytes", found, digest)

    def restart(self) -> None:
        """Throw away what was written."""
        self._file.truncate(0)
        self._file.seek(0)
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def publish(self, target: Path, *, mode: int | None = None, is_durable: bool = True) -> None:
        """Give the file its own name, in place of any other of that name; raises OSError."""
        if os.fstat(self._file.fileno()).st_size != self.size_bytes:  # more was reserved
            self._file.truncate(self.size_bytes)
        if is_durable:
            self._sync_beside_directory(target.parent)
        if mode is not None:
            self._path.chmod(mode)
        self._path.replace(target)
        if is_durable:
            sync_directory(target.parent)
        self._file.close()

    def _sync_beside_directory(self, directory: Path) -> None:
        """Make the bytes durable and the directory exist, at once where it is new: each waits for the disk."""
        if directory.is_dir():
            os.fsync(self._file.fileno())
            return
        with ThreadPoolExecutor(1, "directory") as thread:
            made = thread.submit(make_directory, directory)
            os.fsync(self._file.fileno())
            made.result()

    def close(self) -> None:
        """Leave the file where it is staged, for readers that know its name; nothing makes it durable."""
        self._file.close()

    def keep(self) -> None:
        """Let go of the file, durably, for a writer that resumes; harmless after `publish`."""
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def discard(self) -> None:
        """Remove the file; harmless after `publish`."""
        if not self._file.closed:
            self._file.close()
            self._path.unlink(missing_ok=True)


def read_blocks(file: Readable, on_block: Callable[[bytes], object]) -> int:
    """Read a file from where it is to its end, block by block; returns the number of bytes."""
    size_bytes = 0
    while block := file.read(BLOCK_BYTES):
        on_block(block)
        size_bytes += len(block)
    return size_bytes


def digest_of_file(file: Readable, on_block: Callable[[int], object] = lambda num_bytes: None) -> Digest:
    """Compute the digest of a file from where it is to its end; `on_block` hears the size of each block."""
    digest = hashlib.sha256()

    def add(block: bytes) -> None:
        on_block(len(block))
        digest.update(block)

    read_blocks(file, add)
    return digest_of_hex(digest.hexdigest())


def make_directory(path: Path) -> None:
    """Create a directory and its parents durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, source: Readable, *, mode: int | None = None) -> tuple[Digest, int]:
    """Write a file, or give it new content, atomically and durably; returns its digest and size."""
    make_directory(path.parent)
    stage = path.with_name(f".{path.name}.new")
    stage.unlink(missing_ok=True)
    # From its first byte on what is private can be read by its owner alone.
    staged = StagedFile(stage, mode=0o666 if mode is None else mode)
    try:
        read_blocks(source, staged.write)
        staged.publish(path, mode=mode)
    finally:
        staged.discard()
    return staged.digest(), staged.size_bytes
