"""Checkpoints in archives of web servers: one file with a digest, and in it one folder with the known files.

Nothing of an archive is looked at before all of its bytes have their digest. What comes out is bounded, too: by the
members' number, by their sizes, and by what an archive may say about itself.
"""

import gzip
import hashlib
import tarfile
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from hotslot.errors import (
    DigestMismatchError,
    QuotaExceededError,
    SourceForbiddenError,
    SourceNotFoundError,
)
from hotslot.formats.companions import COMPANION_FILES, MAX_FILE_BYTES, read_companions
from hotslot.formats.file_names import CHECKPOINT_FILES, CONFIG_FILE, SHARD, SIGNATURE_FILE
from hotslot.ids import digest_of_hex
from hotslot.source_urls import ArchiveUrl
from store_service.admission.admit import PICKLE_FILES, Checkpoint
from store_service.execution.full_disk import no_room_is_a_quota
from store_service.sources.access import SourceGrant
from store_service.sources.remote.options import WebOptions
from store_service.sources.remote.requests import SourceRequests, WebFile
from store_service.sources.source import ReportBytes, no_adapter_message, stop_if

READ_BYTES = 1024 * 1024
MAX_MEMBERS = 10_000
MAX_HEADER_BYTES = 4 * 2**20
"""Most that is read at once of an archive: its headers are read whole into memory."""
_PACKED = ".archive.packed"
_TAR = ".archive.tar"


def resolve_archive(url: ArchiveUrl, grant: SourceGrant, options: WebOptions, max_bytes: int) -> "ArchiveContent":
    """Look at an archive's size; raises as `Source.resolve`."""
    content = ArchiveContent(url, grant, options, max_bytes)
    with SourceRequests(str(url), options, url.address) as requests:
        content.look(requests)
    return content


class ArchiveContent:
    """An archive, which is what its digest says."""

    def __init__(self, url: ArchiveUrl, grant: SourceGrant, options: WebOptions, max_bytes: int) -> None:
        self._url = url
        self._options = options
        self._max_bytes = max_bytes
        token = grant.web.bearer_token.get_secret_value() if grant.web is not None else ""
        self._headers: Mapping[str, str] = {"Authorization": f"Bearer {token}"} if token else {}
        self.key = str(url)
        self.origin = str(url)
        self.size_bytes = 0
        """0 where the server does not say."""

    def look(self, requests: SourceRequests) -> None:
        """Learn the size; raises as `Source.resolve`."""
        file = requests.look(self._name, self._address)
        if file is None:
            raise SourceNotFoundError(f"{self._url} not found", str(self._url))
        self.size_bytes = file.size_bytes
        self._check_size(file.size_bytes)

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        """Fetch, check and unpack; see `FixedCheckpoint.fetch`."""
        packed = target / _PACKED
        with SourceRequests(str(self._url), self._options, self._url.address) as requests, packed.open("xb") as file:
            digest, done_bytes = hashlib.sha256(), 0

            def write(data: bytes) -> int:
                nonlocal done_bytes
                with no_room_is_a_quota(f"import of {self._url}"):
                    file.write(data)
                digest.update(data)
                done_bytes += len(data)
                self._check_size(done_bytes)
                report(done_bytes)
                return done_bytes

            requests.fetch(WebFile(self._name, self.size_bytes, "", ""), self._address, write, cancelled)
        found = digest_of_hex(digest.hexdigest())
        if found != self._url.digest:
            raise DigestMismatchError(self._url.address, found, self._url.digest)
        archive = packed if self._url.path.endswith(".tar") else self._unpacked(packed, target / _TAR, cancelled)
        names = self._take_out(archive, target, cancelled)
        archive.unlink()
        return Checkpoint({name: target / name for name in names}, read_companions(target))

    @property
    def _name(self) -> str:
        return PurePosixPath(self._url.path).name

    def _address(self, method: str) -> tuple[str, Mapping[str, str]]:
        return self._url.address, self._headers

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            message = f"{self._url} has more than {self._max_bytes} bytes"
            raise QuotaExceededError(message, subject="max_adapter_bytes")

    def _unpacked(self, packed: Path, archive: Path, cancelled: threading.Event) -> Path:
        done_bytes = 0
        try:
            with gzip.open(packed, "rb") as source, archive.open("xb") as target:
                while data := source.read(READ_BYTES):
                    stop_if(cancelled)
                    done_bytes += len(data)
                    self._check_size(done_bytes)
                    with no_room_is_a_quota(f"import of {self._url}"):
                        target.write(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
            raise self._no_archive(str(exc)) from exc
        packed.unlink()
        return archive

    def _take_out(self, archive: Path, target: Path, cancelled: threading.Event) -> list[str]:
        """Copy the known files of the archive's one adapter; returns their names, and those of pickles."""
        try:
            with archive.open("rb") as file, tarfile.open(fileobj=_bounded(file), mode="r:") as tar:
                members = self._members(tar)
                folder = self._folder_of(members)
                names = []
                for (place, name), member in members.items():
                    if place != folder or (name in COMPANION_FILES and member.size > MAX_FILE_BYTES):
                        continue
                    names.append(name)
                    if name in PICKLE_FILES:
                        continue
                    source = tar.extractfile(member)
                    assert source is not None, "regular files have content"
                    with (target / name).open("xb") as copy, no_room_is_a_quota(f"import of {self._url}"):
                        while data := source.read(READ_BYTES):
                            stop_if(cancelled)
                            copy.write(data)
                return names
        except (tarfile.TarError, EOFError, UnicodeError, ValueError) as exc:
            raise self._no_archive(str(exc)) from exc

    def _members(self, tar: tarfile.TarFile) -> dict[tuple[str, str], tarfile.TarInfo]:
        """Regular files with known names, by folder and name; nothing else of an archive gets a path."""
        found: dict[tuple[str, str], tarfile.TarInfo] = {}
        size_bytes = 0
        for number, member in enumerate(tar):
            size_bytes += member.size
            self._check_size(size_bytes)
            if number >= MAX_MEMBERS:
                raise SourceForbiddenError(f"{self._url} has more than {MAX_MEMBERS} members")
            path = PurePosixPath(member.name)
            if member.isreg() and not member.issparse() and _is_known(path.name):
                if (key := (str(path.parent), path.name)) in found:
                    raise self._no_archive(f"{member.name[:200]} is in it twice")
                found[key] = member
        return found

    def _folder_of(self, members: Mapping[tuple[str, str], tarfile.TarInfo]) -> str:
        places = sorted({place for place, name in members if name in (*CHECKPOINT_FILES, *PICKLE_FILES)})
        with_config = [place for place in places if (place, CONFIG_FILE) in members]
        if len(with_config or places) != 1:
            choice = "an archive of this one alone: {}"
            raise SourceNotFoundError(no_adapter_message(str(self._url), with_config, [], choice), str(self._url))
        return (with_config or places)[0]

    def _no_archive(self, problem: str) -> SourceNotFoundError:
        return SourceNotFoundError(f"{self._url} is no archive that can be read: {problem[:200]}", str(self._url))


def _is_known(name: str) -> bool:
    known = (*CHECKPOINT_FILES, *PICKLE_FILES, *COMPANION_FILES, SIGNATURE_FILE)
    return name in known or SHARD.fullmatch(name) is not None


class _BoundedFile:
    """A file of which little is read at once: a header that says it has gigabytes is none."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on; raises ValueError for more than a header may have."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header has {size} bytes, at most {MAX_HEADER_BYTES} are read")
        return self._file.read(size)


def _bounded(file: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", _BoundedFile(file))
