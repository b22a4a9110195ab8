"""Files of a checkpoint that come with the call that publishes it, kept while it runs.

Weights lie in memory while there is room for them, and else, as everything beside them does, in files that are not
synced: nothing is acknowledged before their content is published in its own form. Whatever an earlier process left goes
at the start.
"""

import asyncio
import hashlib
import secrets
import shutil
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hotslot.content_files import StagedFile, make_directory
from hotslot.errors import DigestMismatchError, FieldViolation, InvalidRequestError, QuotaExceededError
from hotslot.formats.file_names import WEIGHTS_FILES
from hotslot.ids import Digest, digest_of_hex
from shared.metrics.numbers import Tally
from shared.recycled_memory import RecycledMemory
from store_service.admission.admit import Checkpoint
from store_service.admission.held import HeldFile
from store_service.execution.offload import Offload

HELD_BYTES = 64 * 2**20
"""Most bytes of all weights that are in memory while they arrive and are admitted; others go over the disk."""
KEPT_FREE_BYTES = 32 * 2**20
"""Most bytes of that memory that stay for the next ones."""
MEMORY_BYTES = HELD_BYTES * 3 // 2 + KEPT_FREE_BYTES
"""Most bytes that the process has for arrivals: larger ones are in pages of 2 MiB, of which they need two at least."""


@dataclass(frozen=True, slots=True)
class ArrivingFile:
    """A file that is about to come."""

    path: str
    """Name inside the checkpoint folder."""
    size_bytes: int


class ArrivalFolder:
    """Arrivals below one folder of a local disk."""

    def __init__(self, root: Path, *, max_bytes: int, held_bytes: int = HELD_BYTES) -> None:
        """`max_bytes` bounds the files of one checkpoint together, `held_bytes` what is in memory of all of them."""
        self.max_bytes = max_bytes
        self._room = HeldRoom(held_bytes)
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
        return Arrival(self._root / secrets.token_hex(16), files, self._room)


class HeldRoom:
    """Memory for weights that arrive, of all callers together. Thread-safe.

    Room is back when the memory is, so when no view of it is left: a refusal's traceback may keep one for long.
    """

    def __init__(self, max_bytes: int) -> None:
        self._memory = RecycledMemory(KEPT_FREE_BYTES)
        self._left_bytes = max_bytes
        # Reentrant: a view may end, by garbage collection, while its own thread takes memory.
        self._lock = threading.RLock()

    def take(self, size_bytes: int) -> memoryview | None:
        """Memory for one file; None where there is no room, or the system has none."""
        with self._lock:
            if size_bytes > self._left_bytes:
                return None
            self._left_bytes -= size_bytes
        try:
            memory = self._memory.take(size_bytes)
        except (MemoryError, OSError):
            self._give_back(size_bytes)
            return None
        weakref.finalize(memory.obj, self._give_back, size_bytes).atexit = False
        return memory

    def _give_back(self, size_bytes: int) -> None:
        with self._lock:
            self._left_bytes += size_bytes


class _HeldFile:
    """A file in memory as its bytes come."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._array = np.frombuffer(memory, np.uint8)
        self.size_bytes = 0

    def write(self, data: memoryview) -> None:
        """Append. numpy lets other threads run meanwhile; a memoryview would not."""
        end = self.size_bytes + len(data)
        self._array[self.size_bytes : end] = np.frombuffer(data, np.uint8)
        self.size_bytes = end


@dataclass(slots=True)
class Arrival:
    """The files of one checkpoint as their bytes come. Everything here blocks; one call at a time."""

    _folder: Path
    _files: Sequence[ArrivingFile]
    _room: HeldRoom
    _position: int = 0
    """Index of the file that is being written."""
    _staged: StagedFile | _HeldFile | None = None
    _held: HeldFile | None = None
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _paths: dict[str, Path] = field(default_factory=dict)
    """Files that are whole, by name."""

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes; raises InvalidRequestError for more than were announced, and OSError."""
        self._hash.update(data)
        view = memoryview(data)
        while view:
            if self._position == len(self._files):
                problem = f"{len(view)} bytes more than the files have"
                raise InvalidRequestError([FieldViolation("data", problem)])
            view = view[self._write_part(view) :]

    def _write_part(self, view: memoryview) -> int:
        """Write what is the next file's; returns how much that is."""
        file = self._files[self._position]
        staged = self._staged = self._staged or self._begin(file)
        part = view[: file.size_bytes - staged.size_bytes]
        staged.write(part)
        if staged.size_bytes == file.size_bytes:
            self._keep(file, staged)
            self._staged, self._position = None, self._position + 1
        return len(part)

    @property
    def _path(self) -> Path:
        """Place of the file that is being written, which is named by position: a file's name is the caller's."""
        return self._folder / str(self._position)

    def _begin(self, file: ArrivingFile) -> StagedFile | _HeldFile:
        # Others may be needed by their path, as a signature is.
        if file.path in WEIGHTS_FILES and self._held is None:
            memory = self._room.take(file.size_bytes)
            if memory is not None:
                return _HeldFile(memory)
        self._folder.mkdir(exist_ok=True)
        return StagedFile(self._path, digests=False)

    def _keep(self, file: ArrivingFile, staged: StagedFile | _HeldFile) -> None:
        if isinstance(staged, _HeldFile):
            self._held = HeldFile(file.path, staged.memory)
            return
        staged.close()
        self._paths[file.path] = self._path

    def finish(self, digest: Digest) -> Checkpoint:
        """The checkpoint of all files; raises InvalidRequestError for too few bytes, and DigestMismatchError."""
        if self._position < len(self._files):
            file = self._files[self._position]
            found = self._staged.size_bytes if self._staged is not None else 0
            problem = f"{found} of the {file.size_bytes} bytes of {file.path!r} came"
            raise InvalidRequestError([FieldViolation("data", problem)])
        found_digest = digest_of_hex(self._hash.hexdigest())
        if found_digest != digest:
            raise DigestMismatchError("the files that came", found_digest, digest)
        return Checkpoint(self._paths, held=self._held)

    def discard(self) -> None:
        """Remove everything; again is harmless."""
        if isinstance(self._staged, StagedFile):
            self._staged.close()
        if self._held is not None:
            self._held.release()
        self._staged = self._held = None
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

    async def write(self, data: bytes | memoryview) -> None:
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

    async def finish(self, digest: Digest) -> Checkpoint:
        """The checkpoint of all files; raises as `Arrival.write` and `Arrival.finish`."""
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
