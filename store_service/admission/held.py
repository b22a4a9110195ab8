"""Weights that lie in memory: a checkpoint's file that came with a call, read without copies."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hotslot.formats.weight_values import Bits


@dataclass(slots=True)
class HeldFile:
    """A file of a checkpoint in memory, whose bytes no part of the process changes any more."""

    name: str
    """Name inside the checkpoint's folder."""
    data: memoryview

    def open(self) -> "HeldReader":
        """Begin to read it."""
        return HeldReader(self.data)

    def release(self) -> None:
        """Let go of the bytes: a refusal's traceback keeps the checkpoint until garbage is collected."""
        self.data = memoryview(b"")


class HeldReader(io.RawIOBase):
    """An open file in memory. What `elements` gives are views of it."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def close(self) -> None:
        """Let go of the bytes; what `elements` gave keeps them."""
        self._data = memoryview(b"")
        super().close()

    def elements(self, begin: int, num_elements: int, dtype: npt.DTypeLike) -> Bits:
        """Elements from a byte on, where they lie, or, where no element may lie there, a copy."""
        found = np.frombuffer(self._data, dtype, count=num_elements, offset=begin)
        return found if found.flags.aligned else found.copy()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """To a position from the beginning."""
        assert whence == io.SEEK_SET, "tensors are sought by their places"
        self._position = offset
        return offset

    def read(self, size: int = -1, /) -> bytes:
        """A copy of the next bytes."""
        end = len(self._data) if size < 0 else self._position + size
        found = bytes(self._data[self._position : end])
        self._position += len(found)
        return found

    def readinto(self, buffer: Any, /) -> int:
        """Copy the next bytes; returns their number."""
        view = memoryview(buffer).cast("B")
        found = self._data[self._position : self._position + len(view)]
        view[: len(found)] = found
        self._position += len(found)
        return len(found)
