"""The request messages of all our services, and hostile ones made from their descriptors."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

import hotslot.pb as generated

_WIRE_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: (1, bytes(8)),
    FieldDescriptor.TYPE_FLOAT: (5, bytes(4)),
    FieldDescriptor.TYPE_MESSAGE: (2, b"\0"),
    FieldDescriptor.TYPE_STRING: (2, b"\0"),
    FieldDescriptor.TYPE_BYTES: (2, b"\0"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A field of a request message, and the way of fields to it."""

    method: MethodDescriptor
    way: tuple[FieldDescriptor, ...]

    @property
    def field(self) -> FieldDescriptor:
        return self.way[-1]

    @property
    def path(self) -> str:
        """As errors name it."""
        return ".".join(entry.name for entry in self.way)

    def __str__(self) -> str:
        return f"{self.method.name}.{self.path}"

    def message(self, contents: bytes) -> bytes:
        """A request that has these bytes in the message that holds the field."""
        for entry in reversed(self.way[:-1]):
            contents = varint(entry.number << 3 | 2) + varint(len(contents)) + contents
        return contents

    def empty_entries(self, count: int) -> bytes:
        """A request with so many entries of the field, as small as they can be."""
        wire_type, value = _WIRE_TYPES.get(self.field.type, (0, b"\0"))
        return self.message((varint(self.field.number << 3 | wire_type) + value) * count)

    def of_length(self, num_bytes: int) -> bytes:
        """A request whose field holds one value of so many bytes."""
        return self.message(varint(self.field.number << 3 | 2) + varint(num_bytes) + b"x" * num_bytes)


def services() -> list[ServiceDescriptor]:
    """Every service of ours."""
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(generated.__path__, f"{generated.__name__}.")
        if found.name.endswith("_pb2")
    ]
    return [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]


def methods() -> list[MethodDescriptor]:
    """Every method of ours."""
    return [method for service in services() for method in service.methods]


def class_of(message: Descriptor) -> Any:
    """The Python class of a message."""
    return message_factory.GetMessageClass(message)


def places() -> list[Place]:
    """Every field of every request that is repeated or has a length, once for each way to it."""
    return [place for method in methods() for place in _places_in(method, method.input_type, ())]


def _places_in(method: MethodDescriptor, message: Descriptor, way: tuple[FieldDescriptor, ...]) -> Iterator[Place]:
    for entry in message.fields:
        if entry.message_type in [other.message_type for other in way if other.message_type is not None]:
            continue  # a message that may hold its own kind
        has_length = entry.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        if entry.is_repeated or has_length:
            yield Place(method, (*way, entry))
        if entry.message_type is not None:
            yield from _places_in(method, entry.message_type, (*way, entry))


def varint(value: int) -> bytes:
    """A number on the wire."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
