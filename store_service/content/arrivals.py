"""Files of a checkpoint that come with the call that publishes it: kept while it runs, and on the disk only by chance.

They are not synced: nothing is acknowledged before their content is published in its own form. Whatever an earlier
process left goes at the start.
"""

import asyncio
import hashlib
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hotslot.content_files import StagedFile, make_directory
from hotslot.errors import DigestMismatchError, FieldViolation, InvalidRequestError, QuotaExceededError
from hotslot.ids import Digest, digest_of_hex
from shared.metrics.numbers import Tally
from store_service.execution.offload import Offload


@dataclass(frozen=True, slots=True)
class ArrivingFile:
    """A file that is about to come."""

    path: str
    """Name inside the checkpoint folder."""
    size_bytes: int


class ArrivalFolder:
    """Arrivals below one folder of a local disk."""

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        """`max_bytes` bounds the files of one checkpoint together."""
        self.max_bytes = max_bytes
        self._root = root / "arrivals"
        shutil.rmtree(self._root, ignore_errors=True)
        make_directory(self._root)

    def begin(self, files: Sequence[ArrivingFile]) -> "Arrival":
        """Take the files of one checkpoint, whose first byte makes the folder; raises QuotaExceededError."""
        size_bytes = sum(file.size_bytes for file in files)
        if size_bytes > self.max_bytes:
            raise QuotaExceededError(
                f"the files have {size_bytes} bytes, at most {self.max_bytes} are taken", subject="max_adapter_bytes"
            )
        return Arrival(self._root / secrets.token_hex(16), files)


@dataclass(slots=True)
class Arrival:
    """The files of one checkpoint as their bytes come. Everything here blocks; one call at a time."""

    _folder: Path
    _files: Sequence[ArrivingFile]
    _position: int = 0
    """Index of the file that is being written."""
    _staged: StagedFile | None = None
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    paths: dict[str, Path] = field(default_factory=dict)
    """Files that are whole, by name."""

    def write(self, data: bytes) -> None:
        """Take the next bytes; raises InvalidRequestError for more than were announced, and OSError."""
        self._folder.mkdir(exist_ok=True)
        self._hash.update(data)
        view = memoryview(data)
        while view:
            if self._position == len(self._files):
                problem = f"{len(view)} bytes more than the files have"
                raise InvalidRequestError([FieldViolation("data", problem)])
            file = self._files[self._position]
            # Named by position: a file's name is the caller's.
            path = self._folder / str(self._position)
            staged = self._staged = self._staged or StagedFile(path, digests=False)
            part = view[: file.size_bytes - staged.size_bytes]
            staged.write(part)
            view = view[len(part) :]
            if staged.size_bytes == file.size_bytes:
                staged.close()
                self.paths[file.path] = path
                self._staged, self._position = None, self._position + 1

    def finish(self, digest: Digest) -> dict[str, Path]:
        """All files by name; raises InvalidRequestError for too few bytes, and DigestMismatchError."""
        if self._position < len(self._files):
            file = self._files[self._position]
            found = self._staged.size_bytes if self._staged is not None else 0
            problem = f"{found} of the {file.size_bytes} bytes of {file.path!r} came"
            raise InvalidRequestError([FieldViolation("data", problem)])
        found_digest = digest_of_hex(self._hash.hexdigest())
        if found_digest != digest:
            raise DigestMismatchError("the files that came", found_digest, digest)
        return self.paths

    def discard(self) -> None:
        """Remove everything; again is harmless."""
        if self._staged is not None:
            self._staged.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class ArrivalStream:
    """Writes an arrival's bytes on threads, while the next ones come. Lives on the event loop."""

    def __init__(self, arrival: Arrival, offload: Offload, received: Tally) -> None:
        """`received` counts the bytes."""
        self._received = received
        self._arrival = arrival
        self._offload = offload
        self._writing: asyncio.Future[None] | None = None
        self._discarding: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """Begin to write, once what came before is written; raises as `Arrival.write`, here or with a later call."""
        await self.settle()
        if data:
            self._received.add("in", by=len(data))
            self._writing = self._offload.start(self._arrival.write, data)

    async def settle(self) -> None:
        """Wait for what is being written; raises as `Arrival.write`."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None  # not before: a caller that is cancelled here leaves it to `discard`

    async def finish(self, digest: Digest) -> dict[str, Path]:
        """All files by name; raises as `Arrival.write` and `Arrival.finish`."""
        await self.settle()
        return await self._offload(self._arrival.finish, digest)

    def begin_discard(self) -> None:
        """Begin to remove everything: it was finished and read, and what else the call does need not wait for that."""
        if self._discarding is None:
            self._discarding = self._offload.start(self._arrival.discard)

    async def discard(self) -> None:
        """Remove everything once nothing is being written any more, whatever happened."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            self._writing.exception()  # its caller has gone
        self.begin_discard()
        assert self._discarding is not None, "it was begun"
        await self._discarding
