"""One folder below the roots, held open: names are looked up in it, and files are judged by where they really are.

A path may lead elsewhere from one moment to the next. A folder that is open does not, and neither does a file that is:
each is opened first and judged then, by the place that the kernel has for it.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hotslot.errors import SourceChangedError, SourceForbiddenError
from hotslot.formats.file_names import CHECKPOINT_FILES, CONFIG_FILE, SIGNATURE_FILE
from store_service.admission.admit import PICKLE_FILES
from store_service.admission.shards import shard_names

_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FileStamp(NamedTuple):
    """Identity of a file, and the facts that change with every write to it."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(status: os.stat_result) -> FileStamp:
    """The stamp of a file that was looked at."""
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_inside(path: Path, roots: Sequence[Path]) -> bool:
    """True for a path without links that is below one of the roots."""
    return any(path.is_relative_to(root) for root in roots)


class OpenFolder:
    """A folder that is open, with the roots that its files must be in."""

    def __init__(self, descriptor: int, roots: Sequence[Path]) -> None:
        self._descriptor = descriptor
        self._roots = roots

    def __enter__(self) -> "OpenFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._descriptor)

    @property
    def path(self) -> Path:
        """Place where the folder really is now."""
        return _place(self._descriptor)

    def names(self) -> list[str]:
        """Names in the folder; raises SourceForbiddenError."""
        try:
            return sorted(os.listdir(self._descriptor))  # noqa: PTH208 (a path would be looked up again)
        except OSError as exc:
            raise SourceForbiddenError(f"{self.path} cannot be read: {exc.strerror}") from exc

    def stamps(self) -> dict[str, FileStamp]:
        """The known files that the folder has now; raises SourceForbiddenError."""
        names = self.names()
        stamps: dict[str, FileStamp] = {}
        for name in (*CHECKPOINT_FILES, *shard_names(names), SIGNATURE_FILE):
            if name in names:
                try:
                    with self.open(name) as file:
                        stamps[name] = stamp_of(os.fstat(file.fileno()))
                except SourceChangedError:
                    continue  # it went, or its link leads nowhere
        return stamps

    def pickles(self) -> list[str]:
        """Pickled weights in the folder, by their names alone."""
        return [name for name in PICKLE_FILES if name in self.names()]

    def whole_models(self) -> list[str]:
        """Weights in the folder that are no adapter's."""
        return [name for name in self.names() if name.endswith(".safetensors")]

    def nested_adapters(self) -> list[str]:
        """Folders in this one that have an adapter's config, links left out."""
        return [name for name in self.names() if self._has_config(name)]

    def _has_config(self, name: str) -> bool:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError:
            return False
        with OpenFolder(descriptor, self._roots) as nested:
            return CONFIG_FILE in nested.names()

    def open(self, name: str) -> BinaryIO:
        """Open a regular file, and only then look where it really is: links may change in between.

        Raises SourceChangedError for one that is not there, and SourceForbiddenError.
        """
        path = self.path / name
        try:
            descriptor = os.open(name, _FILE, dir_fd=self._descriptor)
        except FileNotFoundError as exc:
            # Where a link leads outside, the existence of a file is not told.
            if not is_inside(Path(os.path.realpath(path)), self._roots):
                raise self._outside(path) from exc
            raise SourceChangedError(str(path)) from exc
        except OSError as exc:
            raise SourceForbiddenError(f"{path} cannot be read: {exc.strerror}") from exc
        file = os.fdopen(descriptor, "rb")
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not is_regular or not is_inside(_place(descriptor), self._roots):
            file.close()
            raise self._outside(path)
        return file

    def _outside(self, path: Path) -> SourceForbiddenError:
        return SourceForbiddenError(f"{path} leads outside of the store's import_roots, or is no regular file")


def _place(descriptor: int) -> Path:
    return Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
