"""The messages of `PublishVersion`, put together with one copy of the weights in them, and taken apart with none.

Protobuf's own class copies them twice, after the copy into one piece that it needs, on the event loop's thread: for
20 MB that took nine times as long. The bytes on the wire are a message like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import grpc
from google.protobuf.descriptor import Descriptor

from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc as pb_grpc
from hotslot.rpc.blob_chunks import LENGTH_DELIMITED, VARINT, varint, varint_at

_SERVICE = pb.DESCRIPTOR.services_by_name["AdapterStoreService"].full_name
_METHOD = "PublishVersion"
# A field's tag: its number and its wire type (https://protobuf.dev/programming-guides/encoding).
_FIELDS = pb.PublishVersionRequest.DESCRIPTOR.fields_by_name
_DATA = _FIELDS["data"].number << 3 | LENGTH_DELIMITED
_KNOWN = {
    *(_FIELDS[name].number << 3 | LENGTH_DELIMITED for name in ("version", "files", "data_digest")),
    _FIELDS["finish"].number << 3 | VARINT,
}
_MAX_LENGTH_BYTES = 5
"""Bytes of a length; protobuf refuses one that is written with more."""


@dataclass(frozen=True, slots=True)
class PublicationMessage:
    """One message: pieces of files, which stay where they are, and its other fields."""

    data: Sequence[bytes | memoryview] = ()
    fields: pb.PublishVersionRequest = field(default_factory=pb.PublishVersionRequest)
    """All but `data`."""

    def encoded(self) -> bytes:
        """The message on the wire."""
        size_bytes = sum(len(piece) for piece in self.data)
        head = (bytes((_DATA,)), varint(size_bytes)) if size_bytes else ()
        return b"".join((self.fields.SerializeToString(), *head, *self.data))


def publish_version_of(channel: grpc.aio.Channel) -> "grpc.aio.StreamUnaryMultiCallable[Any, Any]":
    """`AdapterStoreServiceStub(channel).PublishVersion`, for these messages."""
    return channel.stream_unary(
        f"/{_SERVICE}/{_METHOD}",
        request_serializer=PublicationMessage.encoded,
        response_deserializer=pb.PublishVersionResponse.FromString,
    )


@dataclass(frozen=True, slots=True)
class ArrivedMessage:
    """One message as it came."""

    data: memoryview
    """Bytes of files, where they lie in the message."""
    fields: pb.PublishVersionRequest
    """All but `data`."""
    DESCRIPTOR: ClassVar[Descriptor] = pb.PublishVersionRequest.DESCRIPTOR

    def __getattr__(self, name: str) -> Any:
        """A field by its name, for what looks into any request."""
        return getattr(self.fields, name)


def decode_publication(message: bytes) -> ArrivedMessage:
    """Decode a `PublishVersionRequest`; its data is a view of the message. Raises protobuf's DecodeError."""
    found = _data_in(message)
    if found is None:
        fields = pb.PublishVersionRequest.FromString(message)
        return ArrivedMessage(memoryview(fields.data), fields)
    begin, end, tag_at = found
    rest = message[:tag_at] + message[end:]
    return ArrivedMessage(memoryview(message)[begin:end], pb.PublishVersionRequest.FromString(rest))


def add_to_server(servicer: pb_grpc.AdapterStoreServiceServicer, server: Any) -> None:
    """As the generated function for `AdapterStoreService`, but that `PublishVersion` gets an `ArrivedMessage` each."""
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(
        servicer.PublishVersion,
        request_deserializer=decode_publication,
        response_serializer=pb.PublishVersionResponse.SerializeToString,
    )
    pb_grpc.add_AdapterStoreServiceServicer_to_server(servicer, server)
    # Takes the place of the one that was added for this method before.
    server.add_registered_method_handlers(_SERVICE, {_METHOD: handler})


def _data_in(message: bytes) -> tuple[int, int, int] | None:
    """Begin and end of a message's data, and the place of its tag; None where it stands not once, or beside others."""
    found: tuple[int, int, int] | None = None
    position, end = 0, len(message)
    try:
        while position < end:
            at, tag = position, message[position]
            value, position = varint_at(message, position + 1)
            if tag != _DATA and tag not in _KNOWN:
                return None
            if tag & 7 == LENGTH_DELIMITED:
                if position - at > 1 + _MAX_LENGTH_BYTES:
                    return None
                if tag == _DATA:
                    if found is not None:
                        return None
                    found = position, position + value, at
                position += value
    except IndexError:
        return None
    return found if position == end else None
