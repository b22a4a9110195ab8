"""Reads an adapter that is stored in several files as if they were one after the other."""

import io
from bisect import bisect_right
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from hotslot.errors import InvalidAdapterError, Violation
from hotslot.formats.file_names import MAX_SHARDS, SHARD
from hotslot.formats.safetensors_header import Header, HeaderLimits, read_header


def shard_names(names: Collection[str]) -> tuple[str, ...]:
    """The names of shards among those of files, in order."""
    return tuple(sorted(name for name in names if SHARD.fullmatch(name)))


def check_shards(names: Sequence[str]) -> list[Violation]:
    """Shards that are missing, going by the names of those that are there."""
    totals = {match[2] for name in names if (match := SHARD.fullmatch(name)) is not None}
    if len(totals) != 1 or not 0 < int(next(iter(totals))) <= MAX_SHARDS:
        expected = f"shards of one set, at most {MAX_SHARDS}"
        problem = "the adapter is stored in several files that do not belong together"
        return [Violation.of("MISSING_FILE", names[0], ", ".join(names[:4]), expected, problem)]
    (total,) = totals
    wanted = {f"adapter_model-{number:05}-of-{total}.safetensors" for number in range(1, int(total) + 1)}
    problem = "the adapter is stored in several files, and not all of them are there"
    return [
        Violation.of("MISSING_FILE", name, f"{len(names)} of {int(total)} files", "all of them", problem)
        for name in sorted(wanted.symmetric_difference(names))
    ]


def open_shards(paths: Sequence[Path], limits: HeaderLimits, stack: ExitStack) -> tuple[BinaryIO, Header]:
    """One file and one header of all shards; raises InvalidAdapterError, also for tensors that stand twice."""
    files: list[BinaryIO] = []
    offsets: list[int] = []
    entries, seen = [], dict[str, str]()
    position = 0
    for path in paths:
        file = stack.enter_context(path.open("rb"))
        size_bytes = path.stat().st_size
        header = read_header(file, size_bytes, path.name, limits)
        for entry in header.tensors:
            if entry.name in seen:
                problem = "the tensor is in two of the files"
                raise InvalidAdapterError(
                    [Violation.of("DUPLICATE_TENSOR", entry.name, f"{seen[entry.name]}, {path.name}", "one", problem)]
                )
            seen[entry.name] = path.name
            entries.append(replace(entry, begin=entry.begin + position, end=entry.end + position))
        files.append(file)
        offsets.append(position)
        position += size_bytes
    if len(entries) > limits.max_tensors:
        expected = f"at most {limits.max_tensors}"
        raise InvalidAdapterError(
            [Violation.of("TOO_MANY_TENSORS", "the checkpoint", f"{len(entries)} tensors", expected, "it has too many")]
        )
    joined = _Joined(files, offsets)
    return cast("BinaryIO", joined), Header(tuple(entries), {})


class _Joined(io.RawIOBase):
    """Files one after the other, of which a read never crosses an end: tensors lie in one file each."""

    def __init__(self, files: Sequence[BinaryIO], offsets: Sequence[int]) -> None:
        self._files = files
        self._offsets = offsets
        self._file = files[0]

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """To a position from the beginning of the first file."""
        assert whence == io.SEEK_SET, "tensors are sought by their places"
        index = bisect_right(self._offsets, offset) - 1
        self._file = self._files[index]
        return self._file.seek(offset - self._offsets[index])

    def read(self, size: int = -1, /) -> bytes:
        """From the file that was sought last."""
        return self._file.read(size)

    def readinto(self, buffer: Any, /) -> int:
        """From the file that was sought last; returns the number of bytes."""
        return int(self._file.readinto(buffer))  # type: ignore[attr-defined]
