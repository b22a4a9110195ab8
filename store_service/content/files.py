"""The few file operations that durability rests on."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from hotslot.ids import Digest
from store_service.execution.unwanted import stop_if_unwanted

READ_ONLY = 0o444
PRIVATE_DIRECTORY = 0o700
DIGEST_BLOCK_BYTES = 1024 * 1024


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


def move_into_place(staged: Path, target: Path) -> None:
    """Give a complete, synced file its visible name: read-only, atomically, durably."""
    make_directory(target.parent)
    staged.chmod(READ_ONLY)
    staged.replace(target)
    sync_directory(target.parent)


def digest_of_file(file: BinaryIO, on_block: Callable[[int], object] = lambda num_bytes: None) -> Digest:
    """The digest of an open file's bytes; `on_block` is told the size of each block read. Ends when it is unwanted."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(DIGEST_BLOCK_BYTES):
        stop_if_unwanted()
        digest.update(block)
        on_block(len(block))
    return Digest("sha256:" + digest.hexdigest())


def replace_file(path: Path, data: bytes) -> None:
    """Give a small file new content, atomically and durably."""
    make_directory(path.parent)
    staged = path.with_name(f".{path.name}.new")
    with staged.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    sync_directory(path.parent)


class FileNote:
    """A small document in a file of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes | None:
        """Bytes that were written last; None where nothing was."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        """Replace it durably."""
        replace_file(self._path, data)
