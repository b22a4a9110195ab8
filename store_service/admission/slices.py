"""A tensor's elements in PEFT's order, a few MiB at a time, however large it is and however it lies in its file."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from shared.safetensors_header import TensorEntry
from shared.weight_values import STORAGE, Bits
from store_service.admission.parts import StoredTensor
from store_service.execution.unwanted import stop_if_unwanted

SLICE_BYTES = 2 * 1024 * 1024
"""What is read and converted at once."""
BLOCK_BYTES = 16 * 1024 * 1024
"""What of a transposed tensor is put together at once. Each block reads the tensor once, so larger ones read less."""


def entry_slices(file: BinaryIO, entry: TensorEntry) -> Iterator[Bits]:
    """A tensor's elements in the order in which they are stored."""
    slice_elements = SLICE_BYTES // np.dtype(STORAGE[entry.dtype]).itemsize
    for begin in range(0, entry.num_elements, slice_elements):
        yield _read(file, entry, begin, min(slice_elements, entry.num_elements - begin))


def tensor_slices(file: BinaryIO, tensor: StoredTensor) -> Iterator[Bits]:
    """A tensor's elements in PEFT's order."""
    if not tensor.is_transposed or len(tensor.entry.shape) != 2:
        yield from entry_slices(file, tensor.entry)
        return
    slice_elements = SLICE_BYTES // np.dtype(STORAGE[tensor.entry.dtype]).itemsize
    for block in _transposed_blocks(file, tensor.entry):
        for begin in range(0, block.size, slice_elements):
            yield block[begin : begin + slice_elements]


def _transposed_blocks(file: BinaryIO, entry: TensorEntry) -> Iterator[Bits]:
    """The transpose of a matrix in runs of its rows, or of parts of a row where one alone is larger than a block."""
    num_columns, num_rows = entry.shape
    block_elements = BLOCK_BYTES // np.dtype(STORAGE[entry.dtype]).itemsize
    block_rows, block_columns = max(1, block_elements // num_columns), min(num_columns, block_elements)
    for row in range(0, num_rows, block_rows):
        for column in range(0, num_columns, block_columns):
            shape = min(block_rows, num_rows - row), min(block_columns, num_columns - column)
            yield _transposed(file, entry, row, column, shape).reshape(-1)


def _transposed(file: BinaryIO, entry: TensorEntry, row: int, column: int, shape: tuple[int, int]) -> Bits:
    """The part of a matrix's transpose that begins at a row and a column."""
    rows, columns = shape
    stored_columns = entry.shape[1]
    part = np.empty(shape, STORAGE[entry.dtype])
    at_once = SLICE_BYTES // part.itemsize // stored_columns
    if not at_once:
        for index in range(columns):
            part[:, index] = _read(file, entry, (column + index) * stored_columns + row, rows)
        return part
    for index in range(0, columns, at_once):
        num_read = min(at_once, columns - index)
        stored = _read(file, entry, (column + index) * stored_columns, num_read * stored_columns)
        part[:, index : index + num_read] = stored.reshape(num_read, stored_columns)[:, row : row + rows].T
    return part


def _read(file: BinaryIO, entry: TensorEntry, begin: int, num_elements: int) -> Bits:
    stop_if_unwanted()
    dtype = np.dtype(STORAGE[entry.dtype])
    file.seek(entry.begin + begin * dtype.itemsize)
    data = file.read(num_elements * dtype.itemsize)
    assert len(data) == num_elements * dtype.itemsize, "the header was checked against the size of this very file"
    return np.frombuffer(data, dtype)
