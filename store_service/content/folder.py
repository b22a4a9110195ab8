"""Published blobs on a local disk, read-only; everything here blocks.

`<root>/blobs/<tenant>/<first two hex digits>/<hex>`; stages in `<root>/stages`. Whatever is in `stages` when a
process starts was never acknowledged, and goes. Rotten blobs lie in `<root>/quarantine` for people to look at.
"""

import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hotslot.content_files import READ_ONLY, StagedFile, make_directory, sync_directory
from hotslot.errors import BlobNotFoundError
from store_service.content.keys import BLOBS_FOLDER, BlobKey, blob_key, blob_name

MAX_QUARANTINED = 16
"""Rotten blobs that are kept; the oldest go."""


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """A blob on the disk."""

    key: BlobKey
    size_bytes: int
    modify_time_s: float


class BlobFolder:
    """Blobs below one folder of a local disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stages = root / "stages"
        self._quarantine = root / "quarantine"
        # Held while a name changes its file, so that what is put aside is the file that was looked at.
        self._naming = threading.Lock()
        shutil.rmtree(self._stages, ignore_errors=True)
        for folder in (root / BLOBS_FOLDER, self._stages, self._quarantine):
            make_directory(folder)

    def new_stage(self) -> Path:
        """Path for a file to be staged at."""
        return self._stages / secrets.token_hex(16)

    def take_in(self, staged: StagedFile, key: BlobKey) -> None:
        """Give a verified file its name; one that replaces a blob heals it where it has rotted."""
        with self._naming:
            staged.publish(self.path(key), mode=READ_ONLY)

    def open(self, key: BlobKey) -> BinaryIO:
        """Open a blob; raises BlobNotFoundError."""
        try:
            return self.path(key).open("rb", buffering=0)
        except FileNotFoundError as exc:
            raise BlobNotFoundError(key[1]) from exc

    def delete(self, key: BlobKey) -> None:
        """Remove a blob; harmless when it is not there."""
        self.path(key).unlink(missing_ok=True)

    def found(self) -> Iterator[FoundBlob]:
        """All blobs of all tenants, with what their files say."""
        return found_below(self._root / BLOBS_FOLDER)

    def quarantine(self, key: BlobKey, rotten: BinaryIO) -> bool:
        """Put a blob's file aside, if it still is the open one; it is never served again."""
        path = self.path(key)
        with self._naming:
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(rotten.fileno())):
                return False
            path.replace(self._quarantine / f"{key[0]}-{path.name}")
            sync_directory(path.parent)
        kept = sorted(self._quarantine.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[MAX_QUARANTINED:]:
            old.unlink(missing_ok=True)
        return True

    def path(self, key: BlobKey) -> Path:
        """Path of a blob, if it is there."""
        return self._root / blob_name(key)


def found_below(folder: Path) -> Iterator[FoundBlob]:
    """Blobs in a folder called `blobs`; files that no blob is called like are passed over."""
    for path in folder.glob("*/*/*"):
        key = blob_key(f"{BLOBS_FOLDER}/{path.relative_to(folder).as_posix()}")
        if key is not None:
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                yield FoundBlob(key, status.st_size, status.st_mtime)
