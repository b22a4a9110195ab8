"""Checkpoints in folders of the store's own machine, inside of the roots that its operator allowed."""

import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from shared.errors import QuotaExceededError, SourceForbiddenError, SourceNotFoundError
from store_service.admission.admit import PICKLE_FILES, WEIGHTS_FILES, Checkpoint
from store_service.admission.config import CONFIG_FILE
from store_service.blobs.files import no_room_is_a_quota
from store_service.sources.source import Fetched, ReportBytes, stop_if

COPY_BYTES = 1024 * 1024
KNOWN_FILES = (CONFIG_FILE, *WEIGHTS_FILES)


class DirectorySource:
    """One folder. What it links to outside of the roots is not read."""

    def __init__(self, path: str, roots: tuple[Path, ...], max_file_bytes: int) -> None:
        self._path = path
        self._roots = tuple(root.resolve() for root in roots)
        self._max_file_bytes = max_file_bytes

    @property
    def key(self) -> str:
        """The folder as it was named."""
        return f"dir:{self._path}"

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Fetched:
        """Copy the known files; see `Source.fetch`."""
        folder = self._allowed_folder()
        present = [name for name in KNOWN_FILES if (folder / name).is_file()]
        pickles = [name for name in PICKLE_FILES if (folder / name).exists()]
        if not present and not pickles:
            raise SourceNotFoundError(f"{self._path} has neither {CONFIG_FILE} nor weights", self._path)
        total_bytes = sum((folder / name).stat().st_size for name in present)
        done_bytes = 0
        for name in present:
            with self._open_inside(folder / name) as source, (target / name).open("xb") as copy:
                while block := source.read(COPY_BYTES):
                    stop_if(cancelled)
                    with no_room_is_a_quota(f"import of {self._path}"):
                        copy.write(block)
                    done_bytes += len(block)
                    if done_bytes > self._max_file_bytes:
                        message = f"{self._path} has more than {self._max_file_bytes} bytes"
                        raise QuotaExceededError(message, subject="max_upload_bytes")
                    report(done_bytes, max(total_bytes, done_bytes))
        # A pickle is only ever mentioned, never opened.
        files = {name: target / name for name in present} | {name: folder / name for name in pickles}
        return Fetched(Checkpoint(files), self.key)

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

    def _open_inside(self, path: Path) -> BinaryIO:
        """Open a regular file, and only then look where it really is: links may change in between."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        file = os.fdopen(descriptor, "rb")
        actual = Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not is_regular or not any(actual.is_relative_to(root) for root in self._roots):
            file.close()
            raise SourceForbiddenError(f"{path} leads outside of the store's import_roots, or is no regular file")
        return file
