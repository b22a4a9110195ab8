"""Bounds of requests, counted plainly: every field of every message that stands on the wire, one after the other."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from shared.server.bounds import BOUNDS, MAX_STRAYS
from tools.fuzz.target import require

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_UNPACKED = 65_536
_FIXED = {FieldDescriptor.TYPE_DOUBLE: 8, FieldDescriptor.TYPE_FLOAT: 4}
_WITH_LENGTH = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


@dataclass
class Counted:
    """Amount of everything in a message."""

    entries: Counter[str] = field(default_factory=Counter)
    unpacked: Counter[str] = field(default_factory=Counter)
    longest: Counter[str] = field(default_factory=Counter)
    num_strays: int = 0
    num_outer_strays: int = 0
    has_groups: bool = False

    @property
    def is_beyond(self) -> bool:
        """Something is beyond its bound, whatever the order in which it is looked at."""
        if any(count > BOUNDS[name].max_entries for name, count in self.entries.items()):
            return True
        if any(count > MAX_UNPACKED for count in self.unpacked.values()):
            return True
        return any(size > BOUNDS[name].max_bytes for name, size in self.longest.items())

    @property
    def is_within(self) -> bool:
        """Nothing is beyond its bound, in whatever order."""
        mixed = any(self.unpacked[name] and count > MAX_UNPACKED for name, count in self.entries.items())
        return not self.is_beyond and not mixed and self.num_strays <= MAX_STRAYS and not self.has_groups


def check_refusal(data: bytes, message: Message | None, *, is_refused: bool) -> None:
    """Hold the scan's answer against the counted fields; `message` is what protobuf decodes, None where it does not."""
    if message is None:
        require(is_refused, "a request that protobuf does not decode was taken")
        return
    counted = Counted()
    _count(data, message.DESCRIPTOR, counted, 0)
    if is_refused:
        require(not counted.is_within, "refused within all bounds")
        return
    require(not counted.is_beyond, "taken beyond a bound")
    require(counted.num_outer_strays <= MAX_STRAYS, "taken with more strays than that")
    decoded = Counted()
    _count_decoded(message, decoded)
    require(not decoded.is_beyond, "decoded to more than the bounds")


def _count(data: bytes, kind: Any, counted: Counted, depth: int) -> None:
    num_strays = -_num_singular(kind)
    for number, wire_type, value in _fields(data, counted):
        entry = kind.fields_by_number.get(number)
        if entry is None or not _has_type(entry, wire_type):
            num_strays += 1
            continue
        is_packed = entry.is_repeated and wire_type == LENGTH and entry.type not in _WITH_LENGTH
        num_strays += is_packed or not entry.is_repeated or entry.type not in _WITH_LENGTH
        if is_packed:
            size = _FIXED.get(entry.type)
            counted.entries[entry.full_name] += len(value) // size if size else sum(byte < 0x80 for byte in value)
        elif entry.is_repeated:
            counted.entries[entry.full_name] += 1
            counted.unpacked[entry.full_name] += entry.type not in _WITH_LENGTH
        if entry.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            counted.longest[entry.full_name] = max(counted.longest[entry.full_name], len(value))
        if entry.message_type is not None:
            _count(value, entry.message_type, counted, depth + 1)
    counted.num_strays += max(0, num_strays)
    if depth == 0:
        counted.num_outer_strays = max(0, num_strays)


@cache
def _num_singular(kind: Descriptor) -> int:
    return sum(entry.type not in _WITH_LENGTH or not entry.is_repeated for entry in kind.fields)


def _has_type(entry: FieldDescriptor, wire_type: int) -> bool:
    own = LENGTH if entry.type in _WITH_LENGTH else {8: FIXED64, 4: FIXED32}.get(_FIXED.get(entry.type, 0), VARINT)
    return wire_type == own or (wire_type == LENGTH and entry.is_repeated)


def _fields(data: bytes, counted: Counted) -> Iterator[tuple[int, int, bytes]]:
    """Fields of a message that is known to be one; groups, which no field is, are passed over with what is in them."""
    position = num_open = 0
    while position < len(data):
        tag, position = _varint(data, position)
        begin, wire_type = position, tag & 7
        match wire_type:
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 5:
                position += 4
            case 2:
                size, begin = _varint(data, position)
                position = begin + size
            case _:
                counted.has_groups = True
                num_open += 1 if wire_type == 3 else -1
                continue
        if not num_open:
            yield tag >> 3, wire_type, data[begin:position]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _count_decoded(message: Message, counted: Counted) -> None:
    for entry, value in message.ListFields():
        values: list[Any] = [value]
        if entry.message_type is not None and entry.message_type.GetOptions().map_entry:
            counted.entries[entry.full_name] += len(value)
            continue
        if entry.is_repeated:
            counted.entries[entry.full_name] += len(value)
            values = list(value)
        for item in values:
            if entry.message_type is not None:
                _count_decoded(item, counted)
            elif isinstance(item, str):
                counted.longest[entry.full_name] = max(counted.longest[entry.full_name], len(item.encode()))
