"""Changes to protobuf's bytes that keep most of a message: its fields are moved, doubled, nested and cut."""

from random import Random

from tests.support.request_messages import varint

Field = tuple[int, int, bytes]
"""Number, wire type, and what stands behind the tag (and the length)."""
_VALUES = (
    b"\0", b"\x01", b"\x7f", b"\xff\x01", b"\x80\x00", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01",
    b"\xff" * 9 + b"\x7f", b"\x80" * 9 + b"\0", b"\xff" * 10 + b"\x01", b"\x80" * 5,
)  # fmt: skip
_TEXTS = (
    b"",
    b"x",
    b"\xed\xa0\x80",
    b"\xff",
    b"\0",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc3",
    "ä".encode(),
    b"a" * 4097,
)
_LENGTHS = (1, 2, 127, 128, 2**14, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1)


def split(data: bytes) -> list[Field] | None:
    """The fields of a message; None where the bytes are none."""
    fields, position = list[Field](), 0
    while position < len(data):
        tag, position = _varint(data, position)
        begin, kind = position, tag & 7
        if kind == 0:
            _, position = _varint(data, position)
        elif kind == 2:
            size, begin = _varint(data, position)
            position = begin + size
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            return None
        if position > len(data) or begin < 0 or not tag >> 3:
            return None
        fields.append((tag >> 3, kind, data[begin:position]))
    return fields


def join(fields: list[Field]) -> bytes:
    """A message of these fields."""
    return b"".join(
        varint(number << 3 | kind) + (varint(len(value)) if kind == 2 else b"") + value
        for number, kind, value in fields
    )


def mutate_wire(data: bytes, rng: Random, depth: int = 0) -> bytes:
    """The message with one change to its fields, or to those of a message in it."""
    fields = split(data)
    if not fields:
        return data + join([_field(rng)])
    place = rng.randrange(len(fields))
    number, kind, value = fields[place]
    if kind == 2 and value and depth < 4 and rng.random() < 0.55:
        fields[place] = number, kind, mutate_wire(value, rng, depth + 1)
        return join(fields)
    match rng.randrange(13):
        case 0:
            fields.insert(rng.randrange(len(fields) + 1), fields[place])
        case 1:
            del fields[place]
        case 2:
            rng.shuffle(fields)
        case 3:
            fields.insert(place, _field(rng))
        case 4:
            fields[place] = number, *_field(rng)[1:]
        case 5:
            fields[place] = rng.randrange(1, 17), kind, value
        case 6:  # A list of numbers in one piece becomes many, and the other way round.
            fields[place : place + 1] = (
                [(number, 0, bytes([byte & 0x7F])) for byte in value[:40]] if kind == 2 else [(number, 2, value * 3)]
            )
        case 7:
            head = join(fields[:place])
            return head + varint(number << 3 | 2) + varint(rng.choice(_LENGTHS)) + join(fields[place:])
        case 8:
            return join(fields)[: rng.randrange(len(data) + 1)]
        case 9:
            nested = value
            for _ in range(rng.choice((1, 3, 3, 3, 99, 101, 120))):
                nested = join([(number, 2, nested)])
            return join(fields[:place]) + nested[:9_000] + join(fields[place + 1 :])
        case 10:
            group = varint(number << 3 | 3) * rng.choice((1, 2, 101)) + value + varint(number << 3 | 4)
            return join(fields[:place]) + group + join(fields[place:])
        case 11:
            fields[place:place] = [_field(rng)] * (rng.choice((2, 30)) if rng.random() < 0.9 else 2_100)
        case _:
            fields[place : place + 1] = [fields[place]] * (rng.choice((2, 17)) if rng.random() < 0.9 else 260)
    return join(fields)


def _field(rng: Random) -> Field:
    number = rng.choice((1, 2, 3, 4, 6, 7, 9, 13, 15, 16, 100, 2**18, 2**29 - 1, 2**29, 19_000))
    match rng.randrange(4):
        case 0:
            return number, 2, rng.choice(_TEXTS)
        case 1:
            return number, rng.choice((1, 5)), rng.randbytes(8)
        case _:
            return number, 0, rng.choice(_VALUES)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and the position behind it, -1 and a position behind the end where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    return 0, len(data) + 1
