"""Checkpoints in folders of the store's own machine, inside of the roots that its operator allowed."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from hotslot.errors import QuotaExceededError, SourceChangedError, SourceForbiddenError, SourceNotFoundError
from hotslot.formats.companions import COMPANION_FILES, MAX_FILE_BYTES, read_companions
from hotslot.formats.file_names import SIGNATURE_FILE
from store_service.admission.admit import Checkpoint
from store_service.execution.full_disk import no_room_is_a_quota
from store_service.sources.open_folder import FileStamp, OpenFolder, is_inside, stamp_of
from store_service.sources.source import ReportBytes, no_adapter_message, stop_if

COPY_BYTES = 1024 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class DirectorySource:
    """One folder. Files outside of the roots that it links to are not read."""

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
        with self.opened() as folder:
            stamps, pickles = folder.stamps(), folder.pickles()
            if not set(stamps) - {SIGNATURE_FILE} and not pickles:
                choice = f"dir:{self._path.rstrip('/')}/{{}}"
                problem = no_adapter_message(self._path, folder.nested_adapters(), folder.whole_models(), choice)
                raise SourceNotFoundError(problem, self._path)
            return DirectoryContent(self, folder.path, stamps, pickles)

    def opened(self) -> "OpenFolder":
        """The folder, which stays the same one while it is open, whatever its path leads to by then."""
        if not Path(self._path).is_absolute() or "\0" in self._path:
            raise SourceForbiddenError(f"{self._path!r} is not an absolute path")
        if not self._roots:
            raise SourceForbiddenError("this store imports from no folders; its operator may set import_roots")
        try:
            descriptor = os.open(self._path, _FOLDER)
        except OSError as exc:
            # Outside of the roots, the existence of a file is not told either.
            if not is_inside(Path(os.path.realpath(self._path)), self._roots):
                raise self._outside() from exc
            if isinstance(exc, PermissionError):
                raise SourceForbiddenError(f"{self._path} cannot be read: {exc.strerror}") from exc
            message = f"folder {self._path!r} not found on the store's machine"
            raise SourceNotFoundError(message, self._path) from exc
        folder = OpenFolder(descriptor, self._roots)
        if not is_inside(folder.path, self._roots):
            folder.close()
            raise self._outside()
        return folder

    def _outside(self) -> SourceForbiddenError:
        return SourceForbiddenError(f"{self._path!r} is not inside of the store's import_roots")

    def check_size(self, size_bytes: int) -> None:
        """Raises QuotaExceededError for more bytes than are taken."""
        if size_bytes > self._max_bytes:
            message = f"{self._path} has more than {self._max_bytes} bytes"
            raise QuotaExceededError(message, subject="max_adapter_bytes")


class DirectoryContent:
    """The files of one folder, as they were when it was looked at."""

    def __init__(
        self, source: DirectorySource, path: Path, stamps: Mapping[str, FileStamp], pickles: list[str]
    ) -> None:
        self._source = source
        self._path = path
        self._stamps = stamps
        self._pickles = pickles
        self.key = f"dir:{path}#{stamps}"
        """Changes with every change to the files."""
        self.origin = source.key
        self.size_bytes = sum(stamp.size_bytes for stamp in stamps.values())

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        """Copy the known files, all of one save; see `FixedCheckpoint.fetch`."""
        done_bytes = 0
        with self._source.opened() as folder:
            for name, stamp in self._stamps.items():
                with folder.open(name) as file, (target / name).open("xb") as copy:
                    if stamp_of(os.fstat(file.fileno())) != stamp:
                        raise SourceChangedError(str(self._path / name))
                    while block := file.read(COPY_BYTES):
                        stop_if(cancelled)
                        with no_room_is_a_quota(f"import of {self.origin}"):
                            copy.write(block)
                        done_bytes += len(block)
                        self._source.check_size(done_bytes)
                        report(done_bytes)
            # The names still lead to the files that were copied, and no process has written to these since.
            if folder.path != self._path or folder.stamps() != self._stamps:
                raise SourceChangedError(str(self._path))
            beside = _copy_companions(folder, target)
        # A pickle is only ever mentioned, never opened.
        files = {name: self._path / name for name in self._pickles}
        files |= {name: target / name for name in (*self._stamps, *beside)}
        return Checkpoint(files, read_companions(target))


def _copy_companions(folder: OpenFolder, target: Path) -> list[str]:
    """Copy what lies beside the weights, as far as it may be read: nothing is refused for it. Returns their names."""
    copied = []
    for name in COMPANION_FILES:
        try:
            with folder.open(name) as file:
                # One byte more than is read shows that there is too much.
                (target / name).write_bytes(file.read(MAX_FILE_BYTES + 1))
            copied.append(name)
        except (SourceChangedError, SourceForbiddenError):
            continue
    return copied
