"""Uploads of several stores in object storage: one that broke on a store goes on at another, and is admitted there.

`<url>/uploads/<tenant>/<hex>/<first byte>-<end>-<size>`: parts of a file with so many bytes. Parts that two
streams wrote may overlap. The part that makes a file whole is only written when the file was verified, and a store that
puts parts together verifies again. Everything here blocks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from hotslot.errors import BlobNotFoundError, StoreUnavailableError
from hotslot.ids import TenantId, digest_of_hex, hex_of
from store_service.content.keys import BlobKey
from store_service.content.objects import ObjectBlobs
from store_service.content.waiting import UploadMark

log = structlog.get_logger(__name__)

FOLDER = "uploads"
PART_BYTES = 8 * 1024**2
"""Bytes after which a stream's are shared, before it ends."""
_NAME = re.compile(rf"{FOLDER}/([^/]+)/([0-9a-f]{{64}})/([0-9]{{15}})-([0-9]{{15}})-([0-9]+)")


@dataclass(frozen=True, slots=True)
class UploadPart:
    """Bytes of a file from `begin` up to `end`, of `size_bytes` altogether."""

    name: str
    begin: int
    end: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PartChain:
    """Parts that follow each other from the file's first byte on."""

    parts: tuple[UploadPart, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes that there are from the first one on."""
        return self.parts[-1].end if self.parts else 0

    @property
    def is_whole(self) -> bool:
        """All bytes are there."""
        return bool(self.parts) and self.num_bytes == self.parts[-1].size_bytes


def chain(parts: list[UploadPart]) -> PartChain:
    """The longest chain of these."""
    found: list[UploadPart] = []
    end = 0
    while True:
        fitting = [part for part in parts if part.begin <= end < part.end]
        if not fitting:
            return PartChain(tuple(found))
        found.append(max(fitting, key=lambda part: part.end))
        end = found[-1].end


class UploadParts:
    """Parts below one URL of an object store. Every method may raise StoreUnavailableError."""

    def __init__(self, objects: ObjectBlobs) -> None:
        self._objects = objects

    def chain(self, key: BlobKey) -> PartChain:
        """The parts of an upload that follow each other."""
        names = self._objects.list_small(_folder(key))
        return chain([part for name in names if (part := _part(name)) is not None])

    def add(self, key: BlobKey, begin: int, data: bytes, size_bytes: int) -> None:
        """Keep bytes of an upload of that size, durably."""
        end = begin + len(data)
        self._objects.write_small(f"{_folder(key)}/{begin:015}-{end:015}-{size_bytes}", data)

    def read(self, found: PartChain, offset: int) -> Iterator[bytes]:
        """Bytes of a chain from an offset on; raises BlobNotFoundError for parts that are gone or too short."""
        for part in found.parts:
            if part.end <= offset:
                continue
            data = self._objects.read_small(part.name)
            if data is None or len(data) != part.end - part.begin:
                raise BlobNotFoundError(_key(part.name)[1])
            yield data[offset - part.begin :]
            offset = part.end

    def discard(self, key: BlobKey) -> None:
        """Remove all parts of an upload."""
        for name in self._objects.list_small(_folder(key)):
            self._objects.delete_small(name)

    def found(self) -> dict[str, UploadMark]:
        """All parts by their names."""
        found = {}
        for name, mark in self._objects.list_small(FOLDER).items():
            if (part := _part(name)) is not None:
                found[name] = UploadMark(_key(name)[0], mark, part.end - part.begin)
        return found

    def remove(self, name: str) -> None:
        """Remove one part, by its name."""
        self._objects.delete_small(name)


class UploadSharing:
    """Puts the bytes of one stream where other stores find them: every so often, and when the stream ends."""

    def __init__(self, parts: UploadParts | None, key: BlobKey, path: Path, size_bytes: int) -> None:
        self._parts = parts
        self._key = key
        self._path = path
        self._size_bytes = size_bytes
        self._shared_bytes = 0
        self._is_whole = False
        if parts is not None:
            self._shared_bytes = parts.chain(key).num_bytes

    def wrote(self, num_bytes: int) -> None:
        """So many bytes lie here; raises StoreUnavailableError."""
        # The last part says that the file is whole, and waits until it was verified.
        if self._parts is not None and num_bytes - self._shared_bytes >= PART_BYTES and num_bytes < self._size_bytes:
            self._share(num_bytes)

    def finish(self) -> None:
        """The file is whole, and verified; raises StoreUnavailableError."""
        self._is_whole = True
        if self._parts is not None:
            self._share(self._size_bytes)

    def share(self) -> None:
        """A caller is about to hear how far the upload is; raises StoreUnavailableError."""
        if self._parts is None or self._is_whole:
            return
        num_bytes = self._path.stat().st_size
        if not num_bytes:  # its digest was another one
            self._parts.discard(self._key)
        elif self._shared_bytes < num_bytes < self._size_bytes:
            self._share(num_bytes)

    def end(self) -> None:
        """The stream is over, wherever it broke; what cannot be shared is there for a stream to this store."""
        try:
            self.share()
        except (StoreUnavailableError, OSError) as exc:
            log.warning("upload_not_shared", tenant=self._key[0], digest=self._key[1], why=str(exc))

    def _share(self, num_bytes: int) -> None:
        assert self._parts is not None, "asked before"
        with self._path.open("rb") as file:
            while self._shared_bytes < num_bytes:
                file.seek(self._shared_bytes)
                data = file.read(min(PART_BYTES, num_bytes - self._shared_bytes))
                self._parts.add(self._key, self._shared_bytes, data, self._size_bytes)
                self._shared_bytes += len(data)


def _folder(key: BlobKey) -> str:
    return f"{FOLDER}/{key[0]}/{hex_of(key[1])}"


def _part(name: str) -> UploadPart | None:
    match = _NAME.fullmatch(name)
    return UploadPart(name, int(match[3]), int(match[4]), int(match[5])) if match else None


def _key(name: str) -> BlobKey:
    _, tenant, digits, _ = name.split("/")
    return TenantId(tenant), digest_of_hex(digits)
