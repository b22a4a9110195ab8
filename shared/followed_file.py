"""Files that are followed while they change: the earlier content stays in force while the new one cannot be used."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from hotslot.errors import InvalidRequestError
from hotslot.rpc.tls_files import FileStamps

log = structlog.get_logger(__name__)

T = TypeVar("T")


class FollowedFile(Generic[T]):
    """Content of a file as it is now. Any thread may ask."""

    def __init__(self, path: Path | None, read: Callable[[Path], T], absent: T) -> None:
        """Read it with `read`, which raises InvalidRequestError for one that cannot be used; `absent` where path is
        None."""
        self._path = path
        self._read_file = read
        self._stamps = FileStamps((path,))
        self.content = absent if path is None else read(path)

    def refresh(self) -> bool:
        """Look for a change, at most once in `LOOK_EVERY_S`; True when the content is another object than before.

        A file that cannot be used, perhaps since it is being written, changes nothing but for a line in the log: an
        editor's mistake must not lock everybody out.
        """
        if self._path is None or not self._stamps.changed():
            return False
        self._stamps.taken = self._stamps.look()
        try:
            self.content = self._read_file(self._path)
        except InvalidRequestError as exc:
            log.warning("followed_file_not_read", path=str(self._path), why=exc.message)
            return False
        return True
