"""The digest of the weights that admission writes, computed here or by the stage that they are written to."""

import hashlib
from typing import Protocol

from hotslot.ids import Digest


class WrittenDigest(Protocol):
    """Digest of the weights that are written."""

    def digest_also(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""

    def digest(self) -> Digest:
        """The digest of all bytes."""


class OwnDigest:
    """A digest that no part but admission knows."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def digest_also(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(data)

    def digest(self) -> Digest:
        """The digest of all bytes."""
        return Digest("sha256:" + self._hash.hexdigest())
