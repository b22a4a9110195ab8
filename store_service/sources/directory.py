"""Checkpoints in folders of the store's own machine, inside of the roots that its operator allowed."""

import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hotslot.errors import QuotaExceededError, SourceChangedError, SourceForbiddenError, SourceNotFoundError
from hotslot.formats.companions import COMPANION_FILES, MAX_FILE_BYTES, read_companions
from hotslot.formats.file_names import CHECKPOINT_FILES, CONFIG_FILE
from store_service.admission.admit import PICKLE_FILES, Checkpoint
from store_service.admission.shards import shard_names
from store_service.execution.full_disk import no_room_is_a_quota
from store_service.sources.source import ReportBytes, no_adapter_message, stop_if

COPY_BYTES = 1024 * 1024


class Stamp(NamedTuple):
    """Identity of a file, and the facts that change with every write to it."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file that was looked at."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamps_in(folder: Path) -> dict[str, Stamp]:
    """The known files that a folder has now; raises SourceForbiddenError."""
    stamps: dict[str, Stamp] = {}
    try:
        shards = shard_names([path.name for path in folder.iterdir()])
    except OSError as exc:
        raise SourceForbiddenError(f"{folder} cannot be read: {exc.strerror}") from exc
    for name in (*CHECKPOINT_FILES, *shards):
        try:
            stamps[name] = stamp_of((folder / name).stat())
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise SourceForbiddenError(f"{folder / name} cannot be read: {exc.strerror}") from exc
    return stamps


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
        folder = self._allowed_folder()
        stamps = stamps_in(folder)
        pickles = [name for name in PICKLE_FILES if (folder / name).exists()]
        if not stamps and not pickles:
            adapters = [str(path.parent.relative_to(folder)) for path in folder.glob(f"*/{CONFIG_FILE}")]
            whole = [path.name for path in folder.glob("*.safetensors")]
            choice = f"dir:{self._path.rstrip('/')}/{{}}"
            raise SourceNotFoundError(no_adapter_message(self._path, adapters, whole, choice), self._path)
        return DirectoryContent(self, folder, stamps, pickles)

    def _allowed_folder(self) -> Path:
        path = Path(self._path)
        if not path.is_absolute():
            raise SourceForbiddenError(f"{self._path!r} is not an absolute path")
        if not self._roots:
            raise SourceForbiddenError("this store imports from no folders; its operator may set import_roots")
        folder = Path(os.path.realpath(path))
        # Outside of the roots, the existence of a file is not told either.
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
            raise SourceChangedError(str(path)) from exc
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

    def __init__(self, source: DirectorySource, folder: Path, stamps: Mapping[str, Stamp], pickles: list[str]) -> None:
        self._source = source
        self._folder = folder
        self._stamps = stamps
        self._pickles = pickles
        self.key = f"dir:{folder}#{stamps}"
        """Changes with every change to the files."""
        self.origin = source.key
        self.size_bytes = sum(stamp.size_bytes for stamp in stamps.values())

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        """Copy the known files, all of one save; see `FixedCheckpoint.fetch`."""
        done_bytes = 0
        for name, stamp in self._stamps.items():
            with self._source.open_inside(self._folder / name) as file, (target / name).open("xb") as copy:
                if stamp_of(os.fstat(file.fileno())) != stamp:
                    raise SourceChangedError(str(self._folder / name))
                while block := file.read(COPY_BYTES):
                    stop_if(cancelled)
                    with no_room_is_a_quota(f"import of {self.origin}"):
                        copy.write(block)
                    done_bytes += len(block)
                    self._source.check_size(done_bytes)
                    report(done_bytes)
        # The names still lead to the files that were copied, and no process has written to these since.
        if stamps_in(self._folder) != self._stamps:
            raise SourceChangedError(str(self._folder))
        # A pickle is only ever mentioned, never opened.
        files = {name: target / name for name in self._stamps} | {name: self._folder / name for name in self._pickles}
        self._copy_companions(target)
        return Checkpoint(files, read_companions(target))

    def _copy_companions(self, target: Path) -> None:
        """Copy what lies beside the weights, as far as it may be read: nothing is refused for it."""
        for name in COMPANION_FILES:
            try:
                with self._source.open_inside(self._folder / name) as file:
                    # One byte more than is read shows that there is too much.
                    (target / name).write_bytes(file.read(MAX_FILE_BYTES + 1))
            except (SourceChangedError, SourceForbiddenError):
                continue
