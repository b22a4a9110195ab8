"""The chunks of `BlobService.ReadBlob`, put into messages and taken out with as few copies as gRPC allows.

Protobuf's own class copies a chunk's bytes twice on either side, on the event loop's thread; together with hashing that
is a third of what receiving a blob costs. The bytes on the wire are the same: any protobuf client or server is at
the other end.
"""

from dataclasses import dataclass
from typing import Any

import grpc

from hotslot.pb.hotslot.store.v1 import blob_pb2, blob_pb2_grpc

_SERVICE = blob_pb2.DESCRIPTOR.services_by_name["BlobService"].full_name
_METHOD = "ReadBlob"
_FIELDS = blob_pb2.ReadBlobResponse.DESCRIPTOR.fields_by_name
# A field's tag: its number and its wire type (https://protobuf.dev/programming-guides/encoding).
VARINT, LENGTH_DELIMITED = 0, 2
_DATA = _FIELDS["data"].number << 3 | LENGTH_DELIMITED
_OFFSET = _FIELDS["offset"].number << 3 | VARINT
_SIZE_BYTES = _FIELDS["size_bytes"].number << 3 | VARINT
_MAX_VARINT_BYTES = 10
_LARGEST_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """A piece of a blob."""

    data: memoryview
    offset: int
    size_bytes: int
    """Size of the whole blob."""


def encode_chunk(data: bytes, offset: int, size_bytes: int) -> bytes:
    """A `ReadBlobResponse` on the wire."""
    fields = blob_pb2.ReadBlobResponse(offset=offset, size_bytes=size_bytes).SerializeToString()
    return b"".join((fields, bytes((_DATA,)), varint(len(data)), data))


def decode_chunk(message: bytes) -> BlobChunk:
    """Decode a `ReadBlobResponse`; the chunk's data is a view of the message. Raises protobuf's DecodeError."""
    found = _fields_of(message)
    if found is None:
        parsed = blob_pb2.ReadBlobResponse.FromString(message)
        return BlobChunk(memoryview(parsed.data), parsed.offset, parsed.size_bytes)
    return found


def read_blob_of(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamMultiCallable[blob_pb2.ReadBlobRequest, BlobChunk]:
    """`BlobServiceStub(channel).ReadBlob`, with chunks for its messages."""
    return channel.unary_stream(
        f"/{_SERVICE}/{_METHOD}",
        request_serializer=blob_pb2.ReadBlobRequest.SerializeToString,
        response_deserializer=decode_chunk,
    )


def add_to_server(servicer: blob_pb2_grpc.BlobServiceServicer, server: Any) -> None:
    """As the generated function for `BlobService`, but that `ReadBlob` gives what `encode_chunk` makes."""
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
        servicer.ReadBlob, request_deserializer=blob_pb2.ReadBlobRequest.FromString
    )
    blob_pb2_grpc.add_BlobServiceServicer_to_server(servicer, server)
    # Takes the place of the one that was added for this method before.
    server.add_registered_method_handlers(_SERVICE, {_METHOD: handler})


def _fields_of(message: bytes) -> BlobChunk | None:
    """The fields of a message that has no others and nothing unusual about it, else None."""
    data, numbers = memoryview(b""), {_OFFSET: 0, _SIZE_BYTES: 0}
    position, end = 0, len(message)
    try:
        while position < end:
            tag = message[position]
            value, position = varint_at(message, position + 1)
            if tag == _DATA:
                data = memoryview(message)[position : position + value]
                position += value
            elif tag in numbers and value <= _LARGEST_INT64:
                numbers[tag] = value
            else:
                return None
    except IndexError:
        return None
    return BlobChunk(data, numbers[_OFFSET], numbers[_SIZE_BYTES]) if position == end else None


def varint(value: int) -> bytes:
    """A number of any size on the wire."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def varint_at(message: bytes, position: int) -> tuple[int, int]:
    """A number and the position behind it; raises IndexError where it does not end."""
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError(position)
