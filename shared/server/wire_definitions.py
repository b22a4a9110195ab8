"""Definitions of messages as their bytes show them: by tag, each with its bound (`shared.server.bounds`)."""

import math
from dataclasses import dataclass, field, replace

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from shared.server.bounds import BOUNDS, MAX_STRAYS, Bound

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types; a tag is a field's number and one of them."""
SHORT_BYTES = 0x7F
"""Length up to which a length takes one byte."""
MAX_UNPACKED = 2**16
"""Numbers of a list that stand one by one; protobuf's encoders write them packed, as one piece of bytes."""
_FIXED_BYTES = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}
_WIRE_TYPES = {0: VARINT, 4: FIXED32, 8: FIXED64}
"""By the bytes that a number takes, 0 where that depends on its value."""
_WITH_LENGTH = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


@dataclass(slots=True, eq=False)
class WireField:
    """A field as it stands on the wire, with one tag."""

    name: str
    max_bytes: int
    """0 for what has no length of its own."""
    max_entries: int
    is_repeated: bool
    counter: int
    """Index of its entries' number; both tags of a repeated number share it."""
    packed_bytes: int = -1
    """Bytes of one number where many stand together, 0 where they are varints; -1 for all other fields."""
    kind: "WireMessage | None" = None
    is_short: bool = False
    """True if nothing in an entry of up to 127 bytes can be too long."""


@dataclass(slots=True, eq=False)
class WireMessage:
    """A message's definition."""

    fields: dict[int, WireField] = field(default_factory=dict)
    """By tag."""
    num_singular: int = 0
    entries_bytes: float = math.inf
    """Length of a whole request up to which no repeated field in this message can be beyond its bound."""
    safe_bytes: int = 0
    """Length up to which nothing in it can be beyond its bound."""


class Definitions:
    """The definitions of a request message and of all that it may hold; messages may hold their own kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, WireMessage] = {}
        self.num_counters = 0

    def add(self, message: Descriptor) -> WireMessage:
        """The definition of a message; raises LookupError when a field has no bound."""
        if message.full_name in self._kinds:
            return self._kinds[message.full_name]
        kind = self._kinds[message.full_name] = WireMessage()
        for entry in message.fields:
            is_number = entry.type not in _WITH_LENGTH
            kind.num_singular += is_number or not entry.is_repeated
            if is_number and not entry.is_repeated:
                continue
            bound = _bound_of(entry)
            made = WireField(entry.name, bound.max_bytes, bound.max_entries, entry.is_repeated, self.num_counters)
            self.num_counters += 1
            if entry.message_type is not None:
                made.kind = self.add(entry.message_type)
            if not is_number:
                kind.fields[entry.number << 3 | LENGTH] = made
                continue
            size_bytes = _FIXED_BYTES.get(entry.type, 0)
            kind.fields[entry.number << 3 | LENGTH] = replace(made, packed_bytes=size_bytes)
            made.max_entries = min(made.max_entries, MAX_UNPACKED)
            kind.fields[entry.number << 3 | _WIRE_TYPES[size_bytes]] = made
        return kind

    def finish(self) -> None:
        """Fill in what follows from all that a message may hold."""
        for kind in self._kinds.values():
            reachable = _reachable_from(kind)
            fields = [found for inner in reachable for found in inner.fields.values()]
            # An entry takes two bytes at least, and one where many numbers stand together.
            entries = [(1 if f.packed_bytes >= 0 else 2) * f.max_entries for f in fields if f.is_repeated]
            kind.entries_bytes = min(entries, default=math.inf)
            kind.safe_bytes = min([2 * MAX_STRAYS, *entries, *(f.max_bytes for f in fields if f.max_bytes)])
        for kind in self._kinds.values():
            for tag, found in kind.fields.items():
                is_entry = found.is_repeated and found.packed_bytes < 0 and tag <= 0x7F
                limit = found.max_bytes if found.kind is None else found.kind.safe_bytes
                found.is_short = is_entry and limit > SHORT_BYTES


def _reachable_from(kind: WireMessage) -> list[WireMessage]:
    reachable = [kind]
    for found in reachable:
        reachable += {
            id(entry.kind): entry.kind
            for entry in found.fields.values()
            if entry.kind is not None and not any(entry.kind is other for other in reachable)
        }.values()
    return reachable


def _bound_of(entry: FieldDescriptor) -> Bound:
    if entry.type == FieldDescriptor.TYPE_MESSAGE and not entry.is_repeated:
        return Bound()
    bound = BOUNDS.get(entry.full_name)
    if bound is None:
        raise LookupError(f"{entry.full_name} has no bound; give it a row in shared/server/bounds.py")
    return bound
