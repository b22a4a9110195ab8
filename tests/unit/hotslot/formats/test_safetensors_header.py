"""The header reader accepts what safetensors writes and refuses everything else with a reason."""

import json

import pytest

from hotslot.errors import InvalidAdapterError
from hotslot.formats.safetensors_header import Header, HeaderLimits, parse_header
from tests.unit.hotslot.formats.broken_headers import BROKEN, GOOD, entry, file_of

LIMITS = HeaderLimits()


def parse(file: bytes, limits: HeaderLimits = LIMITS) -> Header:
    return parse_header(file, len(file), "a.safetensors", limits)


def codes_of(file: bytes, limits: HeaderLimits = LIMITS) -> set[str]:
    with pytest.raises(InvalidAdapterError) as caught:
        parse(file, limits)
    return {violation.code for violation in caught.value.violations}


@pytest.mark.parametrize(("file", "code"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_with_its_code(file: bytes, code: str) -> None:
    assert code in codes_of(file)


def test_a_pointer_of_git_lfs_is_told_as_such() -> None:
    with pytest.raises(InvalidAdapterError, match="git lfs pull"):
        parse(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


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
