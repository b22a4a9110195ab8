"""Small tensors that are written together: the same bytes and refusals as one by one, in a fraction of the calls."""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.formats.manifest import DTYPE_SIZES_BYTES
from hotslot.formats.safetensors_header import TensorEntry
from hotslot.formats.weight_values import STORAGE, Bits, float32_bits
from store_service.admission import gathered, normalise, slices
from store_service.admission.held import HeldFile, HeldReader
from store_service.admission.normalise import Written, plan_weights, write_weights
from store_service.admission.parts import StoredTensor
from store_service.admission.planned import Block, ServedModule, WrittenTensor, stacked
from store_service.admission.slices import count_not_finite

MAX_SIZE = 6
ROOM_BYTES = 96
"""Room of what is gathered in the tests: some of their tensors fill it, some are larger, most are smaller."""


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[bytes, tuple[ServedModule, ...]]:
    """A file with tensors in any order, of one type or several, and modules that are written of it in another order."""
    types = draw(st.sampled_from([("F32",), ("BF16",), ("F16",), ("F32", "BF16")]))
    sizes = st.integers(1, MAX_SIZE)
    wanted: list[tuple[int, str, tuple[int, ...]]] = []
    for index in range(draw(st.integers(1, 8))):
        rank, num_in, num_out = draw(st.tuples(sizes, sizes, sizes))
        wanted += [(index, "a", (rank, num_in)), (index, "b", (num_out, rank))]
        if draw(st.booleans()):
            wanted.append((index, "bias", (num_out,)))
    data, stored = bytearray(b"before"), {}
    for index, part, shape in draw(st.permutations(wanted)):
        dtype, is_turned = draw(st.sampled_from(types)), draw(st.booleans())
        storage = np.dtype(STORAGE[dtype])
        values = draw(st.sampled_from(["zero", "some", "any", "bad"]))
        bits = np.random.default_rng(len(data)).integers(0, 100, shape).astype(storage)
        if values == "zero":
            bits[...] = 0
        elif values == "bad":
            bits.reshape(-1)[draw(st.integers(0, bits.size - 1))] = np.iinfo(storage).max
        begin = len(data)
        data += bits.tobytes()
        entry = TensorEntry(f"{index}.{part}", dtype, shape[::-1] if is_turned else shape, begin, len(data))
        stored[index, part] = StoredTensor(entry, is_turned)
    modules = []
    for index in range(1 + max(index for index, _, _ in wanted)):
        a, b = stacked([stored[index, "a"]]), stacked([stored[index, "b"]])
        bias = stacked([stored[index, "bias"]]) if (index, "bias") in stored else None
        if draw(st.booleans()):
            rows = range(a.shape[0])
            a = WrittenTensor(a.shape, (Block(stored[index, "a"], rows, factor=draw(st.sampled_from([0.5, 1.0]))),))
        modules.append(ServedModule(f"m{index}", a.shape[0], draw(st.sampled_from([0.0, 2.0])), a, b, bias))
    return bytes(data), tuple(modules)


def written(
    data: bytes, modules: tuple[ServedModule, ...], opened: Callable[[bytes], Any] = io.BytesIO
) -> tuple[Written, bytes]:
    found = bytearray()
    plan = plan_weights(modules)
    outcome = write_weights(plan, opened(data), [found.extend])
    assert len(found) == plan.size_bytes
    return outcome, bytes(found)


def held_at(begin: int) -> Callable[[bytes], HeldReader]:
    """Opens a file in memory, at a place that its elements may not lie at."""
    return lambda data: HeldFile("weights", memoryview(bytes(begin) + data)[begin:]).open()


@given(checkpoints())
def test_gathered_tensors_are_written_as_one_by_one(made: tuple[bytes, tuple[ServedModule, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SLICE_BYTES", ROOM_BYTES)
        together = written(*made)
        held = [written(*made, held_at(begin)) for begin in range(3)]
        patch.setattr(normalise, "is_gathered", lambda *_: False)
        one_by_one = written(*made)
        assert [together, *held] == [one_by_one] * 4
        assert written(*made, held_at(1)) == one_by_one


@given(st.sampled_from(["F32", "BF16", "F16"]), st.lists(st.integers(0, 2**32 - 1), max_size=12))
def test_values_that_are_not_finite_are_counted_as_numpy_does(dtype: str, values: list[int]) -> None:
    bits = np.array(values, np.uint64).astype(STORAGE[dtype])
    numbers = float32_bits(bits, dtype).view(np.float32)
    assert count_not_finite(dtype, bits) == np.count_nonzero(~np.isfinite(numbers))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_every_bit_pattern_at_the_edge_of_the_finite_is_judged_alone(dtype: str) -> None:
    width = 8 * np.dtype(STORAGE[dtype]).itemsize
    edge = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}[dtype]
    for sign in (0, 1 << (width - 1)):
        for value, num_bad in ((0, 0), (edge - 1, 0), (edge, 1), (edge + 1, 1), ((1 << (width - 1)) - 1, 1)):
            bits = np.array([0, sign | value, 1], STORAGE[dtype])
            assert count_not_finite(dtype, bits) == num_bad


@pytest.mark.parametrize("opened", [io.BytesIO, held_at(0)], ids=["file", "memory"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_hundred_small_tensors_take_one_write(
    monkeypatch: pytest.MonkeyPatch, dtype: str, opened: Callable[[bytes], Any]
) -> None:
    shape, modules, data = (8, 64), [], b""
    size_bytes = math.prod(shape) * DTYPE_SIZES_BYTES[dtype]
    for index in range(100):
        parts = []
        for part in ("a", "b"):
            entry = TensorEntry(f"{index}.{part}", dtype, shape, len(data), len(data) + size_bytes)
            data += bytes(size_bytes - 1) + b"\1"
            parts.append(stacked([StoredTensor(entry, is_transposed=False)]))
        modules.append(ServedModule(f"m{index}", 8, 1.0, *parts))
    pieces: list[int] = []
    counts: list[int] = []

    def counted(dtype: str, bits: Bits) -> int:
        counts.append(bits.size)
        return count_not_finite(dtype, bits)

    monkeypatch.setattr(gathered, "count_not_finite", counted)
    outcome = write_weights(plan_weights(tuple(modules)), opened(data), [lambda piece: pieces.append(len(piece))])
    assert outcome.has_effect
    assert not outcome.violations
    assert (len(pieces), len(counts)) == (2, 1), "the header, and all tensors at once"
