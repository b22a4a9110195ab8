"""An open blob that says when it is closed."""

import io
from collections.abc import Callable
from pathlib import Path


class LeasedFile(io.FileIO):
    """A file for reading, whose lease ends when it is closed or forgotten."""

    def __init__(self, path: Path, on_close: Callable[[], None]) -> None:
        self._on_close: Callable[[], None] | None = None
        super().__init__(path, "r")
        self._on_close = on_close

    def close(self) -> None:
        """Close, and give the lease back once."""
        on_close, self._on_close = self._on_close, None
        super().close()
        if on_close is not None:
            on_close()
