"""Values on their way into the weights file: what is wrong with them, and small tensors checked and written together.

A trainer's adapter has hundreds of tensors of some kilobytes, and each call for one of them costs more than its bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from hotslot.errors import Violation
from hotslot.formats.manifest import LORA_A, LORA_B, LORA_B_BIAS
from hotslot.formats.safetensors_header import TensorEntry
from hotslot.formats.weight_values import STORAGE, Bits
from store_service.admission import slices
from store_service.admission.held import HeldReader
from store_service.admission.planned import Block, ServedModule
from store_service.admission.slices import count_not_finite, elements_of, read_into
from store_service.admission.values import has_nonzero, not_finite
from store_service.execution.unwanted import stop_if_unwanted


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """A block of one of a module's tensors."""

    module: ServedModule
    end: str
    """End of the tensor's name."""
    block: Block


@dataclass(slots=True)
class ValueFacts:
    """Facts about the values that were written so far."""

    has_effect: bool = False
    """False as long as no module changes anything, whatever its input."""
    _ends: dict[str, set[str]] = field(default_factory=dict)
    """By module: its tensors that are not all zeros; only until one has an effect."""
    _entries: dict[str, TensorEntry] = field(default_factory=dict)
    _bad: dict[str, dict[int, int]] = field(default_factory=dict)
    """By tensor: values that are not finite, by the first row of what was read, which several modules may share."""

    def note_bad(self, part: WrittenPart, num_bad: int) -> None:
        """So many values of a part, of all that was read for it, are not finite."""
        if num_bad and part.block.tensor is not None:
            entry = part.block.tensor.entry
            self._entries[entry.name] = entry
            self._bad.setdefault(entry.name, {})[part.block.rows.start] = num_bad

    def note_effect(self, part: WrittenPart, bits: Bits) -> None:
        """Take note of some of a part's values."""
        if self.has_effect or not part.module.scaling:
            return
        ends = self._ends.setdefault(part.module.path, set())
        if part.end not in ends and has_nonzero(bits):
            ends.add(part.end)
            self.has_effect = LORA_B_BIAS in ends or {LORA_A, LORA_B} <= ends

    def violations(self) -> list[Violation]:
        """Every tensor with values that are not finite."""
        return [
            violation
            for name, entry in self._entries.items()
            for violation in not_finite(entry, sum(self._bad[name].values()))
        ]


class Gathered:
    """Small parts, read into one piece of memory until it is worth a check and a write."""

    def __init__(self, file: BinaryIO, dtype: str, values: ValueFacts, write: Callable[[memoryview], object]) -> None:
        """The parts are of this file, and of this element type."""
        self._file = file
        self._dtype = np.dtype(STORAGE[dtype])
        self._type_name = dtype
        self._values = values
        self._write = write
        self._bits: Bits = np.empty(0, self._dtype)
        self._parts: list[tuple[WrittenPart, range]] = []
        self._end = 0
        """Elements that were read."""
        self._run_begin = -1
        """Byte where the first of them lies, in a file in memory."""

    def add(self, part: WrittenPart) -> None:
        """Read the next part, whole."""
        elements = elements_of(part.block)
        if isinstance(self._file, HeldReader):
            self._add_held(part, self._file, elements)
            return
        begin, end = self._end, self._end + len(elements)
        if end > self._bits.size:
            self.flush()
            # Not used again: what was written may still be on its way.
            self._bits = np.empty(slices.SLICE_BYTES // self._dtype.itemsize, self._dtype)
            begin, end = 0, len(elements)
        bits = self._bits[begin:end]
        read_into(self._file, part.block, bits)
        self._end = end
        self._parts.append((part, range(begin, end)))
        self._values.note_effect(part, bits)

    def _add_held(self, part: WrittenPart, file: HeldReader, elements: range) -> None:
        """Take the next part where it lies, behind the last one if that is so in the file: nothing is copied then."""
        assert part.block.tensor is not None, "zeros are stored nowhere"
        stop_if_unwanted()
        at = part.block.tensor.entry.begin + elements.start * self._dtype.itemsize
        begin, end = self._end, self._end + len(elements)
        if at != self._run_begin + begin * self._dtype.itemsize or end > slices.SLICE_BYTES // self._dtype.itemsize:
            self.flush()
            self._run_begin, begin, end = at, 0, len(elements)
        self._end = end
        self._parts.append((part, range(begin, end)))
        self._values.note_effect(part, file.elements(at, len(elements), self._dtype))

    def flush(self) -> None:
        """Check and write what is there."""
        together = self._bits[: self._end]
        if self._end and isinstance(self._file, HeldReader):
            together = self._file.elements(self._run_begin, self._end, self._dtype)
        if together.size:
            if count_not_finite(self._type_name, together):
                for part, at in self._parts:
                    self._values.note_bad(part, count_not_finite(self._type_name, together[at.start : at.stop]))
            self._write(together.data.cast("B"))
        self._bits, self._parts, self._end, self._run_begin = self._bits[self._end :], [], 0, -1
