"""Blobs that were found whole lately, so that not every stream digests them."""

import os
import time
from typing import BinaryIO

MAX_VERIFIED = 100_000


class Verified:
    """Remembers which files were found whole lately, so that a blob that many pull is not digested for each.

    The receiver digests what it gets in any case. A file that was written to since is another file.
    """

    def __init__(self, valid_s: float) -> None:
        self._valid_s = valid_s
        self._seen: dict[tuple[int, ...], float] = {}

    def is_fresh(self, file: BinaryIO) -> bool:
        """Tell if this file was found whole within `valid_s`."""
        seen_s = self._seen.get(_identity(file))
        return seen_s is not None and time.monotonic() - seen_s < self._valid_s

    def add(self, file: BinaryIO) -> None:
        """This file was found whole."""
        if len(self._seen) >= MAX_VERIFIED:
            self._seen.clear()
        self._seen[_identity(file)] = time.monotonic()


def _identity(file: BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
