"""The audit log's own file: whole lines, appended, and in another file as soon as that one was renamed.

Everything here blocks, and is called by one thread.
"""

import os
from contextlib import suppress
from pathlib import Path

MODE = 0o600
_END = b"\n"


class AuditFile:
    """Lines at the end of a file. Several processes may append to the same."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where it cannot be written."""
        self._path = path
        self._descriptor = _opened(path)
        self._is_torn = False
        """A line ended before its end: the next one begins behind a new one."""

    def append(self, line: bytes) -> None:
        """Write one line, in one piece where the disk lets it be; raises OSError."""
        self._follow()
        data = (_END if self._is_torn else b"") + line + _END
        while data:
            try:
                written = os.write(self._descriptor, data)
            except OSError:
                # Whatever came to the disk of it is no whole line.
                self._is_torn = self._is_torn or len(data) <= len(line)
                raise
            self._is_torn = written < len(data)
            data = data[written:]

    def close(self) -> None:
        """Let go of the file; again is harmless."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def _follow(self) -> None:
        """Go on in a new file where this one was renamed or removed, as logrotate does, or was closed."""
        if self._is_current():
            return
        self.close()
        self._descriptor, self._is_torn = _opened(self._path), False

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
