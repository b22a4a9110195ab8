"""Checks what only values can show: that they are finite, the base's own where copied, tied where they must be."""

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np

from shared.errors import Violation
from shared.safetensors_header import TensorEntry
from shared.weight_values import STORAGE, Bits, float32_bits, values_digest
from store_service.admission.checks import Tie
from store_service.admission.parts import BaseCopy, StoredTensor

_EXPONENT_BITS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}


def read_bits(file: BinaryIO, entry: TensorEntry) -> Bits:
    """A tensor's elements, in the order in which they are stored."""
    file.seek(entry.begin)
    data = file.read(entry.size_bytes)
    assert len(data) == entry.size_bytes, "the header was checked against the size of this very file"
    return np.frombuffer(data, STORAGE[entry.dtype])


def not_finite(entry: TensorEntry, bits: Bits) -> Iterator[Violation]:
    """Whether a tensor holds NaN or infinity."""
    exponent = _EXPONENT_BITS[entry.dtype]
    num_bad = int(np.count_nonzero((bits & bits.dtype.type(exponent)) == exponent))
    if num_bad:
        yield Violation.of(
            "NOT_FINITE",
            entry.name,
            f"{num_bad} of {bits.size} values are NaN or infinite",
            "finite values",
            "it would poison every answer",
        )


def check_finite(entries: Iterable[TensorEntry], file: BinaryIO) -> Iterator[Violation]:
    """The tensors with values that are not finite, for a checkpoint that is refused anyway."""
    for entry in entries:
        if entry.dtype in STORAGE:
            yield from not_finite(entry, read_bits(file, entry))


def check_copies(copies: Iterable[BaseCopy], file: BinaryIO) -> Iterator[Violation]:
    """Copies that are not what the base has; those that are can be left out, since loading them changes nothing."""
    for copy in copies:
        is_readable = all(entry.dtype in STORAGE for entry in copy.entries)
        if is_readable and values_digest([(file, entry) for entry in copy.entries]) == copy.module.values_digest:
            continue
        names = " and ".join(entry.name for entry in copy.entries)
        problem = (
            f"these are not the values that {copy.module.path} of the base has: it was trained as a whole, or rounded "
            "to another element type; in the second case save the adapter again with save_embedding_layers=False"
        )
        yield Violation.of("UNSUPPORTED_TENSOR", names, "other values", "the base's, or no such tensor", problem)


def check_tie(tie: Tie | None, file: BinaryIO) -> Iterator[Violation]:
    """A tied pair that is not each other's transpose: PEFT would overwrite one with the other when it loads them."""
    if tie is None:
        return
    embedding, head = tie.embedding, tie.head
    for ours, theirs in ((head.a, embedding.b), (head.b, embedding.a)):
        if not np.array_equal(_matrix(file, ours), _matrix(file, theirs).T):
            expected = f"{theirs.entry.name}, transposed"
            problem = "the config ties them (ensure_weight_tying), but their values differ"
            yield Violation.of("TIE_BROKEN", ours.entry.name, "other values", expected, problem)


def _matrix(file: BinaryIO, tensor: StoredTensor) -> Bits:
    matrix = float32_bits(read_bits(file, tensor.entry), tensor.entry.dtype).reshape(tensor.entry.shape)
    return matrix.T if tensor.is_transposed else matrix
