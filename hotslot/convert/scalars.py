"""Times and enums."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

E = TypeVar("E", bound=StrEnum)


def time_or_none(message: Message, field: str) -> datetime | None:
    """The UTC time in a field, or None when it is not set."""
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    return value.ToDatetime(UTC)


def enum_field(message: Message, field: str, enum: type[E], unknown: str = "unspecified") -> E:
    """The member of `enum` that a field's value stands for; `unknown` for a value of a newer server.

    Members are the protobuf names in lower case, without the prefix that all names of one enum share.
    """
    enum_type = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert enum_type is not None, f"{field} is no enum"
    values = enum_type.values_by_number
    value = values.get(getattr(message, field), values[0])
    name = value.name.removeprefix(values[0].name.removesuffix("UNSPECIFIED")).lower()
    return enum(name if name in {member.value for member in enum} else unknown)
