"""Checkpoints in folders of the store's own machine, inside of the roots that its operator allowed."""

import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from shared.errors import QuotaExceededError, SourceForbiddenError, SourceNotFoundError
from store_service.admission.admit import PICKLE_FILES, WEIGHTS_FILES, Checkpoint
from store_service.admission.config import CONFIG_FILE
from store_service.execution.full_disk import no_room_is_a_quota
from store_service.sources.source import ReportBytes, stop_if

COPY_BYTES = 1024 * 1024
KNOWN_FILES = (CONFIG_FILE, *WEIGHTS_FILES)


class DirectorySource:
    """One folder. What it links to outside of the roots is not read."""

    def __init__(self, path: str, roots: tuple[Path, ...], max_bytes: int) -> None:
        self._path = path
        self._roots = tuple(root.resolve() for root in roots)
        self._max_bytes = max_bytes

    @property
    def key(self) -> str:
        """The folder as it was named."""
        return f"dir:{self._path}"

    @property
    def is_remote(self) -> bool:
        """Looking again costs nothing."""
        return False

    def resolve(self) -> "DirectoryContent":
        """The files that are there now; see `Source.resolve`."""
        folder = self._allowed_folder()
        sizes_bytes: dict[str, int] = {}
        stamps = []
        for name in KNOWN_FILES:
            try:
                found = (folder / name).stat()
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise SourceForbiddenError(f"{folder / name} cannot be read: {exc.strerror}") from exc
            sizes_bytes[name] = found.st_size
            stamps.append((name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        pickles = [name for name in PICKLE_FILES if (folder / name).exists()]
        if not sizes_bytes and not pickles:
            raise SourceNotFoundError(f"{self._path} has neither {CONFIG_FILE} nor weights", self._path)
        return DirectoryContent(self, folder, sizes_bytes, pickles, key=f"dir:{folder}#{stamps}")

    def _allowed_folder(self) -> Path:
        path = Path(self._path)
        if not path.is_absolute():
            raise SourceForbiddenError(f"{self._path!r} is not an absolute path")
        if not self._roots:
            raise SourceForbiddenError("this store imports from no folders; its operator may set import_roots")
        folder = Path(os.path.realpath(path))
        # Outside of the roots, whether something exists is nobody's business either.
        if not any(folder.is_relative_to(root) for root in self._roots):
            raise SourceForbiddenError(f"{self._path!r} is not inside of the store's import_roots")
        if not folder.is_dir():
            raise SourceNotFoundError(f"folder {self._path!r} not found on the store's machine", self._path)
        return folder

    def check_size(self, size_bytes: int) -> None:
        """Raises QuotaExceededError for more bytes than are taken."""
        if size_bytes > self._max_bytes:
            message = f"{self._path} has more than {self._max_bytes} bytes"
            raise QuotaExceededError(message, subject="max_adapter_bytes")

    def open_inside(self, path: Path) -> BinaryIO:
        """Open a regular file, and only then look where it really is: links may change in between."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise SourceNotFoundError(f"{path} is not there any more", self._path) from exc
        except OSError as exc:
            raise SourceForbiddenError(f"{path} cannot be read: {exc.strerror}") from exc
        file = os.fdopen(descriptor, "rb")
        actual = Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not is_regular or not any(actual.is_relative_to(root) for root in self._roots):
            file.close()
            raise SourceForbiddenError(f"{path} leads outside of the store's import_roots, or is no regular file")
        return file


class DirectoryContent:
    """The files of one folder, as they were when it was looked at."""

    def __init__(
        self, source: DirectorySource, folder: Path, sizes_bytes: dict[str, int], pickles: list[str], *, key: str
    ) -> None:
        self._source = source
        self._folder = folder
        self._names = list(sizes_bytes)
        self._pickles = pickles
        self.key = key
        """Changes with every change to the files."""
        self.origin = source.key
        self.size_bytes = sum(sizes_bytes.values())

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        """Copy the known files; see `Content.fetch`."""
        done_bytes = 0
        for name in self._names:
            with self._source.open_inside(self._folder / name) as file, (target / name).open("xb") as copy:
                while block := file.read(COPY_BYTES):
                    stop_if(cancelled)
                    with no_room_is_a_quota(f"import of {self.origin}"):
                        copy.write(block)
                    done_bytes += len(block)
                    self._source.check_size(done_bytes)
                    report(done_bytes)
        # A pickle is only ever mentioned, never opened.
        files = {name: target / name for name in self._names} | {name: self._folder / name for name in self._pickles}
        return Checkpoint(files)
