"""Places that backups are written to and read from: a folder, a tar archive, or a stream of one."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from hotslot.content_files import READ_ONLY, Readable, make_directory, sync_directory, write_file
from hotslot.errors import FieldViolation, InvalidRequestError, NotFoundError, PreconditionError
from hotslot.file_lock import try_lock
from hotslot.formats.file_names import CATALOG_FILE
from store_service.backup.manifest import MANIFEST
from store_service.content.keys import blob_key

TAR_SUFFIX = ".tar"
PACKED_SUFFIXES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")
STREAM = "-"


NamedFiles = Iterator[tuple[str, Readable]]
"""Names and bytes of a backup, its manifest last; to be read one after the other."""


class BackupTarget(Protocol):
    """The seam to what a backup is written to."""

    def add(self, name: str, file: Readable, size_bytes: int) -> None:
        """Write a file of this size."""


class FolderTarget:
    """Files in a folder, each durable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, file: Readable, size_bytes: int) -> None:
        """Write a file of this size."""
        write_file(self._folder / name, file, mode=READ_ONLY)


class TarTarget:
    """Members of an archive."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def add(self, name: str, file: Readable, size_bytes: int) -> None:
        """Write a file of this size; raises OSError where it is shorter."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = size_bytes, READ_ONLY
        self._archive.addfile(member, file)


@contextmanager
def writing_to(where: str, stdout: BinaryIO) -> Iterator[BackupTarget]:
    """A new backup at a place: `-`, a file that ends with .tar, or a folder.

    A file appears under its name once the block has ended. Raises PreconditionError where something is already, and
    InvalidRequestError for a kind of file that no backup is.
    """
    path = Path(where)
    if where == STREAM:
        with tarfile.open(fileobj=stdout, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            yield TarTarget(archive)
        stdout.flush()
    elif path.suffix == TAR_SUFFIX:
        if path.exists():
            raise PreconditionError(f"{path} exists; a backup overwrites nothing, name another file", where)
        make_directory(path.absolute().parent)
        part = path.with_name(f"{path.name}.incomplete")
        # Its reader reads every tenant's adapters.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            _claim(file, path)
            file.truncate()
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                yield TarTarget(archive)
            file.flush()
            os.fsync(file.fileno())
            part.rename(path)
        sync_directory(path.absolute().parent)
    elif path.suffix in PACKED_SUFFIXES:
        problem = f"{path}: a backup is a folder or a .tar file; weights do not get smaller when they are packed"
        raise InvalidRequestError([FieldViolation("backup", problem)], problem)
    else:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise PreconditionError(f"{path} is not an empty folder; a backup overwrites nothing, name another", where)
        make_directory(path.absolute())
        yield FolderTarget(path)


def _claim(file: BinaryIO, path: Path) -> None:
    """Keep other backups from writing the same file until it is closed; raises PreconditionError where one does."""
    if not try_lock(file.fileno()):
        raise PreconditionError(f"another backup to {path} is under way; name another file", str(path))
    if path.exists():  # It was renamed after it was opened here.
        raise PreconditionError(f"{path} exists; a backup overwrites nothing, name another file", str(path))


def reading_from(where: str, stdin: BinaryIO) -> NamedFiles:
    """The backup at a place.

    Raises NotFoundError where nothing is, and PreconditionError for what is no backup, or an incomplete one.
    """
    path = Path(where)
    if where == STREAM:
        yield from _members(stdin, "the stream")
    elif path.is_dir():
        yield from _files(path)
    elif path.is_file():
        with path.open("rb") as file:
            yield from _members(file, where)
    else:
        raise NotFoundError(f"{where} is neither a folder nor a file; `hotslot backup` makes backups", where)


def incomplete(where: str, what: str) -> PreconditionError:
    """Error for a backup that ended before its end."""
    return PreconditionError(f"{where} is no complete backup: {what}; use another, or take a new one", where)


def _files(folder: Path) -> NamedFiles:
    if not (folder / MANIFEST).is_file():
        raise incomplete(str(folder), f"{MANIFEST}, which is written last, is missing")
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in (CATALOG_FILE, *(name for name in names if blob_key(name) is not None), MANIFEST):
        try:
            file = (folder / name).open("rb")
        except FileNotFoundError as exc:
            raise incomplete(str(folder), f"{name} is missing") from exc
        with file:
            yield name, file


def _members(file: BinaryIO, where: str) -> NamedFiles:
    """Only what a backup consists of is taken from an archive: nothing else gets a path."""
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                if not member.isfile() or not (member.name in (CATALOG_FILE, MANIFEST) or blob_key(member.name)):
                    raise PreconditionError(f"{where} is no backup of hotslot's: it has {member.name[:200]!r}", where)
                content = archive.extractfile(member)
                assert content is not None, "regular files have content"
                yield member.name, _Member(content, where)
                if member.name == MANIFEST:
                    return
    except (tarfile.TarError, EOFError) as exc:
        raise incomplete(where, str(exc) or "it ends too early") from exc
    raise incomplete(where, f"{MANIFEST}, which is written last, is missing")


class _Member:
    """A file in an archive, which may end in the middle of it."""

    def __init__(self, file: Readable, where: str) -> None:
        self._file = file
        self._where = where

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; raises PreconditionError where the archive ends too early."""
        try:
            return self._file.read(size)
        except (tarfile.TarError, EOFError) as exc:
            raise incomplete(self._where, str(exc) or "it ends too early") from exc
