"""A tensor's elements in PEFT's order, a few MiB at a time, however large it is and however it lies in its file."""

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from hotslot.formats.safetensors_header import TensorEntry
from hotslot.formats.weight_values import STORAGE, Bits, float32_bits
from store_service.admission.held import HeldReader
from store_service.admission.parts import StoredTensor
from store_service.admission.planned import Block
from store_service.execution.unwanted import stop_if_unwanted

_EXPONENT_BITS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
SLICE_BYTES = 2 * 1024 * 1024
"""Bytes that are read and converted at once."""
BLOCK_BYTES = 16 * 1024 * 1024
"""Bytes of a transposed tensor that are put together at once. Each block reads the tensor once, so larger ones read
less.
"""


def entry_slices(file: BinaryIO, entry: TensorEntry, elements: range | None = None) -> Iterator[Bits]:
    """A tensor's elements, or a run of them, in the order in which they are stored."""
    run = elements if elements is not None else range(entry.num_elements)
    slice_elements = SLICE_BYTES // np.dtype(STORAGE[entry.dtype]).itemsize
    for begin in range(run.start, run.stop, slice_elements):
        yield _read(file, entry, begin, min(slice_elements, run.stop - begin))


def tensor_slices(file: BinaryIO, tensor: StoredTensor, rows: range | None = None) -> Iterator[Bits]:
    """The elements of a tensor, or of a run of its rows, in PEFT's order."""
    if not tensor.is_transposed or len(tensor.entry.shape) != 2:
        columns = _columns(tensor)
        elements = range(rows.start * columns, rows.stop * columns) if rows is not None else None
        yield from entry_slices(file, tensor.entry, elements)
        return
    slice_elements = SLICE_BYTES // np.dtype(STORAGE[tensor.entry.dtype]).itemsize
    for block in _transposed_blocks(file, tensor.entry, rows if rows is not None else range(tensor.shape[0])):
        for begin in range(0, block.size, slice_elements):
            yield block[begin : begin + slice_elements]


def block_slices(file: BinaryIO, block: Block, dtype: str) -> Iterator[tuple[Bits, int]]:
    """A block's elements in an element type that holds them exactly, and how many of those read are not finite."""
    if block.tensor is None:
        yield from ((zeros, 0) for zeros in _zeros(len(block.rows) * max(1, block.left + block.right), dtype))
        return
    stored = block.tensor.entry.dtype
    slices = tensor_slices(file, block.tensor, block.rows)
    if block.is_as_stored:
        for bits in slices:
            yield (bits if stored == dtype else float32_bits(bits, stored)), count_not_finite(stored, bits)
        return
    columns = _columns(block.tensor)
    width = block.left + columns + block.right
    num_rows = max(1, SLICE_BYTES // (np.dtype(STORAGE[dtype]).itemsize * width))
    for rows in _whole_rows(slices, columns):
        for begin in range(0, len(rows), num_rows):
            bits = _scaled(rows[begin : begin + num_rows], stored, dtype, block.factor)
            placed = np.zeros((len(bits), width), STORAGE[dtype])
            placed[:, block.left : block.left + columns] = bits
            yield placed.reshape(-1), count_not_finite(dtype, bits)


def is_gathered(block: Block, dtype: str) -> bool:
    """Tell whether a block is small, and written as it is stored, so that one look serves many of its kind."""
    tensor = block.tensor
    if tensor is None or not block.is_as_stored or tensor.entry.dtype != dtype:
        return False
    is_turned = tensor.is_transposed and len(tensor.entry.shape) == 2
    return not is_turned and len(elements_of(block)) * np.dtype(STORAGE[dtype]).itemsize <= SLICE_BYTES


def elements_of(block: Block) -> range:
    """Elements of its tensor, in the order in which they are stored, of a block that `is_gathered`."""
    assert block.tensor is not None, "zeros are stored nowhere"
    columns = _columns(block.tensor)
    return range(block.rows.start * columns, block.rows.stop * columns)


def read_into(file: BinaryIO, block: Block, bits: Bits) -> None:
    """Read all elements of a block that `is_gathered`."""
    assert block.tensor is not None, "zeros are stored nowhere"
    stop_if_unwanted()
    file.seek(block.tensor.entry.begin + elements_of(block).start * bits.itemsize)
    view: memoryview = bits.data.cast("B")
    while view:
        num_bytes = file.readinto(view)  # type: ignore[attr-defined]
        assert num_bytes, "the header was checked against the size of this very file"
        view = view[num_bytes:]


def count_not_finite(dtype: str, bits: Bits) -> int:
    """Number of elements that are NaN or infinity."""
    exponent = _EXPONENT_BITS[dtype]
    if not bits.size or not _has_not_finite(exponent, bits):
        return 0
    return int(np.count_nonzero((bits & bits.dtype.type(exponent)) == exponent))


def _has_not_finite(exponent: int, bits: Bits) -> bool:
    """Tell whether there are any, by extremes alone: nothing is written, where a count writes as much as it reads.

    Bits with a sign are the largest numbers without one; those without a sign are the largest with one.
    """
    unsigned = bits.dtype
    sign = 1 << (8 * unsigned.itemsize - 1)
    positive = bits.view(unsigned.str.replace("u", "i"))
    return int(positive.max()) >= exponent or int(bits.max()) >= sign | exponent


def _columns(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape[1:])


def _zeros(num_elements: int, dtype: str) -> Iterator[Bits]:
    slice_elements = SLICE_BYTES // np.dtype(STORAGE[dtype]).itemsize
    for begin in range(0, num_elements, slice_elements):
        yield np.zeros(min(slice_elements, num_elements - begin), STORAGE[dtype])


def _whole_rows(slices: Iterator[Bits], columns: int) -> Iterator[Bits]:
    """The same elements as matrices of whole rows."""
    rest: Bits | None = None
    for bits in slices:
        joined = bits if rest is None or not rest.size else np.concatenate([rest, bits])
        num_whole = joined.size // columns * columns
        if num_whole:
            yield joined[:num_whole].reshape(-1, columns)
        rest = joined[num_whole:]


def _scaled(bits: Bits, stored: str, dtype: str, factor: float) -> Bits:
    """Values times a power of two, which changes no mantissa. F16 becomes F32 first, which holds every product."""
    if factor == 1.0:
        return bits if stored == dtype else float32_bits(bits, stored)
    with np.errstate(over="ignore", invalid="ignore"):
        product = (float32_bits(bits, stored).view(np.float32) * np.float32(factor)).view(np.uint32)
    return product if dtype == "F32" else (product >> np.uint32(16)).astype(np.uint16)


def _transposed_blocks(file: BinaryIO, entry: TensorEntry, rows: range) -> Iterator[Bits]:
    """Rows of the transpose of a matrix, in runs, or in parts of a row where one alone is larger than a block."""
    num_columns = entry.shape[0]
    block_elements = BLOCK_BYTES // np.dtype(STORAGE[entry.dtype]).itemsize
    block_rows, block_columns = max(1, block_elements // num_columns), min(num_columns, block_elements)
    for row in range(rows.start, rows.stop, block_rows):
        for column in range(0, num_columns, block_columns):
            shape = min(block_rows, rows.stop - row), min(block_columns, num_columns - column)
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
    if isinstance(file, HeldReader):
        return file.elements(entry.begin + begin * dtype.itemsize, num_elements, dtype)
    file.seek(entry.begin + begin * dtype.itemsize)
    data = file.read(num_elements * dtype.itemsize)
    assert len(data) == num_elements * dtype.itemsize, "the header was checked against the size of this very file"
    return np.frombuffer(data, dtype)
