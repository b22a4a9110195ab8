"""The flight recorder of a shard: a file in shared memory that outlives whatever an input does to the process."""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

MAX_INPUT_BYTES = 1 << 20
_FORMAT = struct.Struct("<QQQQQ")
_ACCEPTED_AT, _SLOWEST_AT, _BEGUN_AT, _LENGTH_AT = 8, 16, 24, 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Snapshot of the recorder at one moment."""

    num_executions: int
    num_accepted: int
    slowest_ns: int
    """CPU time of the slowest input."""
    begun_ns: int
    """Begin of the input under way, by the monotonic clock; 0 between inputs."""
    data: bytes
    """The input under way, or the last one."""


class Box:
    """Written by one process, read by another."""

    def __init__(self, path: Path) -> None:
        path.touch()
        size = _FORMAT.size + MAX_INPUT_BYTES
        with path.open("r+b") as file:
            os.ftruncate(file.fileno(), size)
            self._memory = mmap.mmap(file.fileno(), size)

    def begin(self, data: bytes) -> None:
        """An input is about to be run."""
        kept = data[:MAX_INPUT_BYTES]
        self._memory[_FORMAT.size : _FORMAT.size + len(kept)] = kept
        self._set(_LENGTH_AT, len(kept))
        self._set(_BEGUN_AT, time.monotonic_ns())

    def end(self, is_accepted: bool, cpu_ns: int) -> None:
        """That input has ended."""
        before = self.read_counts()
        self._set(_BEGUN_AT, 0)
        self._set(_ACCEPTED_AT, before[1] + is_accepted)
        self._set(_SLOWEST_AT, max(before[2], cpu_ns))
        self._set(0, before[0] + 1)

    def read_counts(self) -> tuple[int, int, int, int, int]:
        """The raw numbers: executions, accepted, slowest, begun, length."""
        executions, accepted, slowest, begun, length = _FORMAT.unpack_from(self._memory)
        return executions, accepted, slowest, begun, length

    def read(self) -> Snapshot:
        """Everything."""
        executions, accepted, slowest, begun, length = self.read_counts()
        data = bytes(self._memory[_FORMAT.size : _FORMAT.size + length])
        return Snapshot(executions, accepted, slowest, begun, data)

    def _set(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self._memory, offset, value)
