"""Weights files by hand: sound ones, and every way to break a header that we know, with its violation."""

import json
import struct
from typing import Any


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def file_of_json(header: dict[str, Any], data: bytes = b"") -> bytes:
    return file_of(json.dumps(header).encode(), data)


def entry(dtype: Any, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"x": entry("F32", [2], 0, 8), "y": entry("F16", [2, 1], 8, 12)}

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "FILE_TRUNCATED"),
    "shorter than its length field": (b"\x02\x00\x00", "FILE_TRUNCATED"),
    "no header at all": (struct.pack("<Q", 0), "HEADER_NOT_JSON"),
    "header longer than the file": (struct.pack("<Q", 50) + b"{}", "FILE_TRUNCATED"),
    "header of 2^63 bytes": (struct.pack("<Q", 2**63) + b"{}", "HEADER_TOO_LARGE"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "HEADER_TOO_LARGE"),
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
    "an overflow behind a 0": (file_of_json({"x": entry("U8", [0, 2**62, 4], 0, 0)}), "SHAPE_OVERFLOW"),
    "more dimensions than readers have": (file_of_json({"x": entry("U8", [1] * 33, 0, 1)}, b"a"), "BAD_TENSOR_ENTRY"),
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

BROKEN_FILES = [file for file, _ in BROKEN.values()]
SOUND_FILES = [
    file_of(b"{}"),
    file_of_json({"__metadata__": {"format": "pt"}, **GOOD}, bytes(12)),
    file_of_json(
        {"a": entry("U8", [], 0, 1), "b": entry("F64", [0], 1, 1), "c": entry("BF16", [1, 2, 1], 1, 5)}, bytes(5)
    ),
]
