"""Checks what only values can show: that they are finite, the base's own where copied, tied where they must be."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

from hotslot.errors import Violation
from hotslot.formats.safetensors_header import TensorEntry
from hotslot.formats.weight_values import STORAGE, Bits, float32_bits, values_digest
from store_service.admission.parts import BaseCopy, StoredTensor
from store_service.admission.planned import Tie
from store_service.admission.slices import count_not_finite, entry_slices, tensor_slices


def has_nonzero(bits: Bits) -> bool:
    """Tell whether any element is neither 0 nor -0."""
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return bool((bits & ~sign).any())


def not_finite(entry: TensorEntry, num_bad: int) -> Iterator[Violation]:
    """Violation of a tensor of which so many elements are not finite; none for 0."""
    if num_bad:
        yield Violation.of(
            "NOT_FINITE",
            entry.name,
            f"{num_bad} of {entry.num_elements} values are NaN or infinite",
            "finite values",
            "it would poison every answer",
        )


def check_finite(entries: Iterable[TensorEntry], file: BinaryIO) -> Iterator[Violation]:
    """The tensors with values that are not finite, for a checkpoint that is refused anyway."""
    for entry in entries:
        if entry.dtype in STORAGE:
            yield from not_finite(entry, sum(count_not_finite(entry.dtype, bits) for bits in entry_slices(file, entry)))


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


def judged_rows(violations: Sequence[Violation], resized: Iterable[BaseCopy], file: BinaryIO) -> Iterator[Violation]:
    """The violations, those of copies with added rows with what became of the rows that the base has, too."""
    told: dict[str, str] = {}
    for copy in resized:
        kept = "are unchanged" if not list(check_copies((copy,), file)) else "have other values than the base's"
        num_rows = copy.entries[0].shape[0]
        told |= {entry.name: f"; rows 0 to {num_rows - 1} of the copy {kept}" for entry in copy.entries}
    for violation in violations:
        is_resized = violation.code == "UNSUPPORTED_TENSOR" and violation.subject in told
        yield replace(violation, message=violation.message + told[violation.subject]) if is_resized else violation


def check_tie(tie: Tie | None, file: BinaryIO) -> Iterator[Violation]:
    """A tied pair that is not each other's transpose: PEFT would overwrite one with the other when it loads them."""
    if tie is None:
        return
    embedding, head = tie.embedding, tie.head
    for ours, theirs in ((head.a, embedding.b), (head.b, embedding.a)):
        transposed = StoredTensor(theirs.entry, not theirs.is_transposed)
        if ours.shape != transposed.shape or _digest(file, ours) != _digest(file, transposed):
            expected = f"{theirs.entry.name}, transposed"
            problem = "the config ties them (ensure_weight_tying), but their values differ"
            yield Violation.of("TIE_BROKEN", ours.entry.name, "other values", expected, problem)


def _digest(file: BinaryIO, tensor: StoredTensor) -> bytes:
    """Equal for equal values in PEFT's order, whatever their element types."""
    hasher = hashlib.sha256()
    for bits in tensor_slices(file, tensor):
        hasher.update(float32_bits(bits, tensor.entry.dtype).data)
    return hasher.digest()
