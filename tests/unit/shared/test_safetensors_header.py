"""The header reader accepts what safetensors writes and refuses everything else with a reason."""

import json
import math
import struct
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import InvalidAdapterError
from shared.safetensors_header import Header, HeaderLimits, parse_header

LIMITS = HeaderLimits()


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def file_of_json(header: dict[str, Any], data: bytes = b"") -> bytes:
    return file_of(json.dumps(header).encode(), data)


def parse(file: bytes, limits: HeaderLimits = LIMITS) -> Header:
    return parse_header(file, len(file), "a.safetensors", limits)


def codes_of(file: bytes, limits: HeaderLimits = LIMITS) -> set[str]:
    with pytest.raises(InvalidAdapterError) as caught:
        parse(file, limits)
    return {violation.code for violation in caught.value.violations}


def entry(dtype: Any, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"x": entry("F32", [2], 0, 8), "y": entry("F16", [2, 1], 8, 12)}

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "FILE_TRUNCATED"),
    "shorter than its length field": (b"\x02\x00\x00", "FILE_TRUNCATED"),
    "no header at all": (struct.pack("<Q", 0), "HEADER_NOT_JSON"),
    "header longer than the file": (struct.pack("<Q", 50) + b"{}", "FILE_TRUNCATED"),
    "header of 2^63 bytes": (struct.pack("<Q", 2**63) + b"{}", "HEADER_TOO_LARGE"),
    "a pickle": (b"PK\x03\x04aaaaaaaaaaaaaaaa", "HEADER_TOO_LARGE"),
    "a list": (file_of(b"[]"), "HEADER_NOT_JSON"),
    "a leading space": (file_of(b" {}"), "HEADER_NOT_JSON"),
    "bytes behind the JSON": (file_of(b"{}{}"), "HEADER_NOT_JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "HEADER_NOT_JSON"),
    "a lone surrogate": (file_of(b'{"\\ud800": {}}'), "HEADER_NOT_JSON"),
    "nested 100,000 deep": (file_of(b'{"a":' * 100_000), "HEADER_NOT_JSON"),
    "NaN": (file_of(b'{"a": NaN}'), "HEADER_NOT_JSON"),
    "the same tensor twice": (
        file_of(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],'
                b'"data_offsets":[0,1]}}', b"a"), "DUPLICATE_KEY"),
    "the same field twice": (
        file_of(b'{"x":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a"),
        "DUPLICATE_KEY"),
    "metadata that is not text": (file_of(b'{"__metadata__":{"a":1}}'), "BAD_METADATA"),
    "metadata that is null": (file_of(b'{"__metadata__":null}'), "BAD_METADATA"),
    "a nested metadata": (file_of(b'{"__metadata__":{"a":{}}}'), "BAD_METADATA"),
    "bytes after the last tensor": (file_of(json.dumps(GOOD).encode(), bytes(13)), "TRAILING_BYTES"),
    "a missing byte": (file_of(json.dumps(GOOD).encode(), bytes(11)), "FILE_TRUNCATED"),
    "an empty name": (file_of_json({"": entry("U8", [0], 0, 0)}), "BAD_TENSOR_NAME"),
    "a name of 5,000 characters": (
        file_of_json({"n" * 5000: entry("U8", [0], 0, 0)}), "BAD_TENSOR_NAME"),
    "an unknown type": (file_of_json({"x": entry("F31", [1], 0, 4)}, bytes(4)), "UNKNOWN_DTYPE"),
    "a type that is no text": (
        file_of_json({"x": entry(3, [1], 0, 4)}, bytes(4)), "UNKNOWN_DTYPE"),
    "a field too many": (
        file_of_json({"x": {**entry("U8", [1], 0, 1), "z": 1}}, b"a"), "BAD_TENSOR_ENTRY"),
    "a field too few": (file_of_json({"x": {"dtype": "U8", "shape": [0]}}), "BAD_TENSOR_ENTRY"),
    "an entry that is a number": (file_of_json({"x": 3}), "BAD_TENSOR_ENTRY"),
    "a float as a size": (file_of_json({"x": entry("U8", [1.0], 0, 1)}, b"a"), "HEADER_NOT_JSON"),
    "a negative size": (file_of_json({"x": entry("U8", [-1], 0, 1)}, b"a"), "HEADER_NOT_JSON"),
    "a negative offset": (file_of_json({"x": entry("U8", [1], -1, 0)}, b"a"), "HEADER_NOT_JSON"),
    "a boolean as a size": (
        file_of_json({"x": entry("U8", [True], 0, 1)}, b"a"), "BAD_TENSOR_ENTRY"),
    "a size of 30 digits": (
        file_of(b'{"x":{"dtype":"U8","shape":[' + b"9" * 30 + b'],"data_offsets":[0,1]}}', b"a"),
        "HEADER_NOT_JSON"),
    "three offsets": (
        file_of(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}', b"a"), "BAD_TENSOR_ENTRY"),
    "a product that wraps to 0": (
        file_of_json({"x": entry("F32", [2**31, 2**31, 4], 0, 0)}), "SHAPE_OVERFLOW"),
    "an overflow hidden by a 0": (
        file_of_json({"x": entry("F32", [2**31, 2**31, 2**31, 0], 0, 0)}), "SHAPE_OVERFLOW"),
    "offsets backwards": (file_of_json({"x": entry("U8", [1], 1, 0)}, b"a"), "SIZE_MISMATCH"),
    "offsets that do not fit the shape": (
        file_of_json({"x": entry("F32", [3], 0, 8)}, bytes(8)), "SIZE_MISMATCH"),
    "a hole at the beginning": (
        file_of_json({"x": entry("U8", [1], 1, 2)}, b"ab"), "OFFSET_HOLE"),
    "a hole in between": (
        file_of_json({"x": entry("U8", [1], 0, 1), "y": entry("U8", [1], 2, 3)}, b"abc"),
        "OFFSET_HOLE"),
    "two tensors on the same bytes": (
        file_of_json({"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 0, 2)}, b"ab"),
        "OFFSET_OVERLAP"),
    "two tensors that overlap by one byte": (
        file_of_json({"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 1, 3)}, b"abc"),
        "OFFSET_OVERLAP"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "code"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_with_its_code(file: bytes, code: str) -> None:
    assert code in codes_of(file)


def test_entries_come_in_file_order_with_positions_from_the_files_beginning() -> None:
    header = json.dumps(GOOD | {"__metadata__": {"format": "pt"}}).encode()
    parsed = parse(file_of(header, bytes(12)))
    assert [(t.name, t.begin - 8 - len(header), t.size_bytes) for t in parsed.tensors] == [
        ("x", 0, 8),
        ("y", 8, 4),
    ]
    assert parsed.metadata == {"format": "pt"}


def test_every_malformed_entry_is_reported() -> None:
    header = {"x": entry("F31", [1], 0, 4), "y": entry("F32", [9], 4, 8), "z": 1}
    assert codes_of(file_of(json.dumps(header).encode(), bytes(8))) == {
        "UNKNOWN_DTYPE",
        "SIZE_MISMATCH",
        "BAD_TENSOR_ENTRY",
    }


def test_limits_hold() -> None:
    header = json.dumps({f"t{i}": entry("U8", [0], 0, 0) for i in range(11)}).encode()
    assert codes_of(file_of(header), HeaderLimits(max_tensors=10)) == {"TOO_MANY_TENSORS"}
    assert codes_of(file_of(header), HeaderLimits(max_header_bytes=100)) == {"HEADER_TOO_LARGE"}


sizes = st.one_of(st.integers(0, 4), st.sampled_from([True, -1, 1.5, None, 2**62, 2**64, "1"]))
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "BOOL", "F99", "I64"]),
            "shape": st.lists(sizes, max_size=3),
            "data_offsets": st.lists(sizes, min_size=2, max_size=2),
        }
    ),
    st.none(),
)


@st.composite
def nearly_right_files(draw: st.DrawFn) -> bytes:
    """Files whose tensors lie side by side, then a few bytes of the whole changed."""
    document: dict[str, Any] = {}
    position = 0
    for index in range(draw(st.integers(0, 4))):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype, width = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1)]))
        end = position + width * math.prod(shape)
        document[draw(st.sampled_from(["a", "b", "é", f"t{index}"]))] = entry(dtype, shape, position, end)
        position = end
    if draw(st.booleans()):
        document["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    if draw(st.integers(0, 3)) == 0:
        document["broken"] = draw(entries)
    file = bytearray(file_of(json.dumps(document).encode(), draw(st.binary(min_size=position, max_size=position))))
    for _ in range(draw(st.integers(0, 2))):
        file[draw(st.integers(0, len(file) - 1))] = draw(st.integers(0, 255))
    return bytes(file)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nearly_right_files())
def test_what_is_accepted_the_library_reads_to_the_same_tensors(file: bytes) -> None:
    try:
        header = parse(file)
    except InvalidAdapterError:
        return
    deserialized = safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    theirs = {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in deserialized}
    ours = {t.name: (t.dtype, list(t.shape), file[t.begin : t.end]) for t in header.tensors}
    assert ours == theirs


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused_with_violations(data: bytes) -> None:
    for file in (data, file_of(data), file_of(b"{" + data)):
        try:
            parse(file)
        except InvalidAdapterError as exc:
            num_violations = len(exc.violations)
        else:
            continue
        assert num_violations > 0
