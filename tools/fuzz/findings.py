"""Findings: inputs that were neither accepted nor refused as they should be, as files that anybody can run again."""

import hashlib
import traceback
from pathlib import Path

MAX_KINDS = 20
"""After so many different ones a shard stops."""


class Findings:
    """Keeps the shortest input of each kind of finding: its exception and where it was raised."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shortest: dict[str, int] = {}

    @property
    def num_kinds(self) -> int:
        """Number of different ones."""
        return len(self._shortest)

    def add_error(self, data: bytes, error: BaseException) -> None:
        """Keep an input that let an exception escape."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__}-{Path(frame.filename).stem}-{frame.lineno}"
        self.add(data, kind, "".join(traceback.format_exception(error)))

    def add(self, data: bytes, kind: str, text: str) -> None:
        """Keep an input, and say what it did."""
        if len(data) >= self._shortest.get(kind, len(data) + 1):
            return
        self._shortest[kind] = len(data)
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob(f"{kind}.*"):
            old.unlink()
        name = f"{kind}.{hashlib.sha256(data).hexdigest()[:12]}"
        (self._folder / f"{name}.input").write_bytes(data)
        (self._folder / f"{name}.txt").write_text(text[:20_000], encoding="utf-8", errors="backslashreplace")


def saved(folder: Path) -> list[Path]:
    """The inputs under a folder, whatever the target."""
    return sorted(folder.glob("*/*.input"))
