"""Reads the header of a safetensors file, strictly: what is accepted here, every reader accepts.

Rules beyond the library's: a bound on the header and on the number of tensors, no field twice, no unknown
field, nothing but a plain non-negative integer where a size belongs, no hole between tensors. Nothing is
mapped or allocated by size before these hold.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from hotslot.errors import InvalidAdapterError, Violation
from hotslot.formats.strict_json import DuplicateKeyError, StrictJsonError, parse_object

PREFIX_BYTES = 8
MAX_ADAPTER_HEADER_BYTES = 4 * 1024 * 1024
MAX_ADAPTER_TENSORS = 20_000
MAX_TENSOR_BITS = 2**63 - 1
MAX_NAME_CHARS = 1_024
MAX_DIMENSIONS = 32
"""As numpy 1 and torch's exporters bound it."""
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_POINTER = b"version "
"""The beginning of a pointer of Git LFS, which a clone without LFS has in place of a file."""
_TENSOR_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """Most bytes of a header."""

    max_header_bytes: int = MAX_ADAPTER_HEADER_BYTES
    max_tensors: int = MAX_ADAPTER_TENSORS


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor; `begin` and `end` count from the first byte of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose every tensor lies inside the file, side by side, in file order."""

    tensors: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, size_bytes: int, subject: str, limits: HeaderLimits) -> Header:
    """Read and check the header of an open file of `size_bytes`; errors as `parse_header`."""
    file.seek(0)
    prefix = file.read(PREFIX_BYTES)
    length = _header_length(prefix, size_bytes, subject, limits)
    return parse_header(prefix + file.read(length), size_bytes, subject, limits)


def header_bytes(file: BinaryIO, size_bytes: int, limits: HeaderLimits) -> bytes | None:
    """The unparsed header of an open file of `size_bytes`, with its length; None where `read_header` refuses it."""
    file.seek(0)
    prefix = file.read(PREFIX_BYTES)
    try:
        return prefix + file.read(_header_length(prefix, size_bytes, "", limits))
    except InvalidAdapterError:
        return None


def read_header_of(path: Path, limits: HeaderLimits) -> Header:
    """Read and check the header of a file on disk; errors as `parse_header`."""
    with path.open("rb") as file:
        return read_header(file, path.stat().st_size, path.name, limits)


def parse_header(data: bytes | memoryview, size_bytes: int, subject: str, limits: HeaderLimits) -> Header:
    """Check the header in `data`, the first bytes, or all, of a file of `size_bytes` called `subject`.

    Raises InvalidAdapterError with every violation that can be told apart.
    """
    length = _header_length(bytes(data[:PREFIX_BYTES]), size_bytes, subject, limits)
    data_start = PREFIX_BYTES + length
    if len(data) < data_start:
        _refuse("FILE_TRUNCATED", subject, f"{len(data)} bytes", f"{data_start} bytes", "its header is cut off")
    document = _parse_json(bytes(data[PREFIX_BYTES:data_start]), subject)
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("BAD_METADATA", subject, repr(metadata), "an object of strings", "its __metadata__ is malformed")
    if len(document) > limits.max_tensors:
        found, expected = str(len(document)), f"at most {limits.max_tensors}"
        _refuse("TOO_MANY_TENSORS", subject, found, expected, "it has too many tensors")
    entries: list[TensorEntry] = []
    violations: list[Violation] = []
    for name, fields in document.items():
        parsed = _parse_entry(name, fields, data_start)
        if isinstance(parsed, Violation):
            violations.append(parsed)
        else:
            entries.append(parsed)
    if not violations:
        entries.sort(key=lambda entry: (entry.begin, entry.end))
        violations = list(_layout_violations(entries, data_start, size_bytes, subject))
    if violations:
        raise InvalidAdapterError(violations)
    return Header(tuple(entries), metadata)


def _header_length(prefix: bytes, size_bytes: int, subject: str, limits: HeaderLimits) -> int:
    file_size = f"a file of {size_bytes} bytes"
    if len(prefix) < PREFIX_BYTES:
        _refuse("FILE_TRUNCATED", subject, file_size, "at least 8 bytes", "it is too short for a header")
    if prefix == _POINTER:
        problem = "it is a pointer of Git LFS, which stands for the file; fetch that with `git lfs pull`"
        _refuse("HEADER_TOO_LARGE", subject, file_size, "a safetensors file", problem)
    length = int(struct.unpack("<Q", prefix)[0])
    if length > limits.max_header_bytes:
        found, expected = f"{length} bytes", f"at most {limits.max_header_bytes} bytes"
        _refuse(
            "HEADER_TOO_LARGE",
            subject,
            found,
            expected,
            "its header is too large, or it is no safetensors file",
        )
    if PREFIX_BYTES + length > size_bytes:
        _refuse("FILE_TRUNCATED", subject, file_size, f"a header of {length} bytes", "its header is cut off")
    return length


def _parse_json(text: bytes, subject: str) -> dict[str, Any]:
    if not text.startswith(b"{"):
        _refuse("HEADER_NOT_JSON", subject, repr(text[:1]), "'{'", "its header begins with something else")
    try:
        return parse_object(text, sizes_only=True)
    except StrictJsonError as exc:
        code = "DUPLICATE_KEY" if isinstance(exc, DuplicateKeyError) else "HEADER_NOT_JSON"
        expected = "JSON as safetensors writes it"
        raise InvalidAdapterError(
            [Violation.of(code, subject, str(exc), expected, "its header is unreadable")]
        ) from exc


def _parse_entry(name: str, fields: Any, data_start: int) -> TensorEntry | Violation:
    if not name or len(name) > MAX_NAME_CHARS:
        expected = f"1 to {MAX_NAME_CHARS} characters"
        return Violation.of(
            "BAD_TENSOR_NAME", name, f"{len(name)} characters", expected, "its name is too long or empty"
        )
    if not isinstance(fields, dict) or set(fields) != _TENSOR_FIELDS:
        return Violation.of(
            "BAD_TENSOR_ENTRY", name, repr(fields), "dtype, shape, data_offsets", "its entry is malformed"
        )
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        return Violation.of("UNKNOWN_DTYPE", name, repr(dtype), ", ".join(DTYPE_BITS), "its element type is unknown")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        found = f"shape {shape!r}, data_offsets {offsets!r}"
        return Violation.of(
            "BAD_TENSOR_ENTRY", name, found, "a list of sizes and two offsets", "its entry is malformed"
        )
    if len(shape) > MAX_DIMENSIONS:
        found, expected = f"{len(shape)} dimensions", f"at most {MAX_DIMENSIONS}"
        return Violation.of("BAD_TENSOR_ENTRY", name, found, expected, "it has too many dimensions")
    num_bits = full_bits = DTYPE_BITS[dtype]
    for size in shape:
        num_bits *= size
        full_bits *= size or 1  # Readers multiply in any order, so a 0 hides no overflow.
        if full_bits > MAX_TENSOR_BITS:
            return Violation.of("SHAPE_OVERFLOW", name, repr(shape), "a size below 2^63 bits", "its shape overflows")
    begin, end = offsets
    if end < begin or (end - begin) * 8 != num_bits:
        expected = f"{num_bits // 8} bytes for {dtype} {shape}"
        return Violation.of("SIZE_MISMATCH", name, f"offsets {offsets}", expected, "its offsets do not fit its shape")
    return TensorEntry(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _layout_violations(
    entries: list[TensorEntry], data_start: int, size_bytes: int, subject: str
) -> Iterator[Violation]:
    position = data_start
    for entry in entries:
        begin, expected = f"byte {entry.begin}", f"byte {position}"
        if entry.begin < position:
            yield Violation.of("OFFSET_OVERLAP", entry.name, begin, expected, "it overlaps its predecessor")
        elif entry.begin > position:
            yield Violation.of("OFFSET_HOLE", entry.name, begin, expected, "a hole stands before it")
        position = max(position, entry.end)
    found, expected = f"{size_bytes} bytes", f"{position} bytes"
    if position > size_bytes:
        yield Violation.of("FILE_TRUNCATED", subject, found, expected, "the file is cut off")
    elif position < size_bytes:
        yield Violation.of("TRAILING_BYTES", subject, found, expected, "bytes follow the last tensor")


def _refuse(code: str, subject: str, found: str, expected: str, problem: str) -> NoReturn:
    raise InvalidAdapterError([Violation.of(code, subject, found, expected, problem)])
