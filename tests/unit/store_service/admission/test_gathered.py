"""Small tensors that are written together: the same bytes and refusals as one by one, in a fraction of the calls."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.formats.manifest import DTYPE_SIZES_BYTES
from hotslot.formats.safetensors_header import TensorEntry
from hotslot.formats.weight_values import STORAGE, Bits
from store_service.admission import gathered, normalise, slices
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


def written(data: bytes, modules: tuple[ServedModule, ...]) -> tuple[Written, bytes]:
    found = bytearray()
    plan = plan_weights(modules)
    outcome = write_weights(plan, io.BytesIO(data), [found.extend])
    assert len(found) == plan.size_bytes
    return outcome, bytes(found)


@given(checkpoints())
def test_gathered_tensors_are_written_as_one_by_one(made: tuple[bytes, tuple[ServedModule, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SLICE_BYTES", ROOM_BYTES)
        together = written(*made)
        patch.setattr(normalise, "is_gathered", lambda *_: False)
        assert together == written(*made)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_hundred_small_tensors_take_one_write(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
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
    outcome = write_weights(plan_weights(tuple(modules)), io.BytesIO(data), [lambda piece: pieces.append(len(piece))])
    assert outcome.has_effect
    assert not outcome.violations
    assert (len(pieces), len(counts)) == (2, 1), "the header, and all tensors at once"
