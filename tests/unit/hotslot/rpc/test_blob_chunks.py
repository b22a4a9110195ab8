"""Blob chunks on the wire are protobuf's own, whichever side puts them there or takes them out."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hotslot.pb.hotslot.store.v1 import blob_pb2
from hotslot.rpc.blob_chunks import decode_chunk, encode_chunk

DATA = st.binary(max_size=300)
NUMBERS = st.integers(0, 2**63 - 1)
FIELDS = st.tuples(DATA, NUMBERS, NUMBERS)


def by_protobuf(message: bytes) -> tuple[bytes, int, int]:
    parsed = blob_pb2.ReadBlobResponse.FromString(message)
    return parsed.data, parsed.offset, parsed.size_bytes


def by_us(message: bytes) -> tuple[bytes, int, int]:
    chunk = decode_chunk(message)
    return bytes(chunk.data), chunk.offset, chunk.size_bytes


def serialized(data: bytes, offset: int, size_bytes: int) -> bytes:
    return blob_pb2.ReadBlobResponse(data=data, offset=offset, size_bytes=size_bytes).SerializeToString()


@given(FIELDS)
def test_protobuf_reads_what_is_encoded_here(fields: tuple[bytes, int, int]) -> None:
    assert by_protobuf(encode_chunk(*fields)) == by_us(encode_chunk(*fields)) == fields


@given(FIELDS)
def test_what_protobuf_writes_is_decoded_here(fields: tuple[bytes, int, int]) -> None:
    assert by_us(serialized(*fields)) == fields


@given(st.lists(FIELDS, max_size=3))
def test_of_fields_that_come_again_the_last_counts(several: list[tuple[bytes, int, int]]) -> None:
    message = b"".join(encode_chunk(*fields) for fields in several)
    assert by_us(message) == by_protobuf(message)


@given(
    st.binary(max_size=40)
    | FIELDS.flatmap(lambda fields: st.integers(0, 400).map(lambda end: serialized(*fields)[:end]))
    | st.tuples(FIELDS, st.binary(max_size=20)).map(lambda it: encode_chunk(*it[0]) + it[1])
)
def test_anything_else_is_what_protobuf_takes_it_for(message: bytes) -> None:
    try:
        expected = by_protobuf(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_chunk(message)
    else:
        assert by_us(message) == expected


def test_data_is_not_copied() -> None:
    message = encode_chunk(b"x" * 1000, 0, 1000)
    assert decode_chunk(message).data.obj is message


@pytest.mark.parametrize("tag", [0x10, 0x18, 0x0A])
def test_a_number_that_does_not_end_is_refused(tag: int) -> None:
    with pytest.raises(DecodeError):
        decode_chunk(bytes((tag,)) + b"\xff" * 1_000_000)
