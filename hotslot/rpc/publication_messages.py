"""The messages of `PublishVersion`, put together with one copy of the weights in them.

Protobuf's own class copies them twice, after the copy into one piece that it needs, on the event loop's thread: for
20 MB that took nine times as long. The bytes on the wire are a message like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.blob_chunks import LENGTH_DELIMITED, varint

_SERVICE = pb.DESCRIPTOR.services_by_name["AdapterStoreService"].full_name
_METHOD = "PublishVersion"
# A field's tag: its number and its wire type (https://protobuf.dev/programming-guides/encoding).
_DATA = pb.PublishVersionRequest.DESCRIPTOR.fields_by_name["data"].number << 3 | LENGTH_DELIMITED


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
