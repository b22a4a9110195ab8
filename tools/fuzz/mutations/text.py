"""Changes to JSON as text and to plain bytes: what no document can express."""

import re
from random import Random

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[\[\]{}:,]')
_LITERALS = (
    b"-0", b"01", b"1e3", b"1.0", b"-1", b"NaN", b"Infinity", b"1e999", b"18446744073709551616", b"9" * 40, b"true",
    b"null", b'"\\ud800"', b'"\\u0000"', b'"\\ud83d\\ude00"', b"{}", b"[]", b'""', b"'x'", b"//", b"\xef\xbb\xbf",
    b'"\xed\xa0\x80"', b'"\x00"', b" ", b"\n", b"\x0c", b",", b":", b"{", b"]", b"9223372036854775807",
)  # fmt: skip


def mutate_text(text: bytes, rng: Random) -> bytes:
    """JSON with a token replaced, doubled, dropped or moved, or a value nested."""
    tokens = [match.span() for match in _TOKEN.finditer(text[:4096])]
    if not tokens:
        return mutate_bytes(text, rng)
    begin, end = rng.choice(tokens)
    other_begin, other_end = rng.choice(tokens)
    token = text[begin:end]
    match rng.randrange(7):
        case 0:
            token = rng.choice(_LITERALS)
        case 1:
            token += rng.choice(_LITERALS)
        case 2:
            token = b""
        case 3 | 4:
            token = text[other_begin:other_end]
        case 5:
            depth = rng.choice((2, 40, 130, 1200))
            token = b"[" * depth + token + b"]" * depth if rng.random() < 0.8 else b'{"a":' * depth + token
        case _:
            token = _escaped(token, rng)
    return text[:begin] + token + text[end:]


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """A few bytes set, inserted, dropped or copied."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 6))):
        position = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if position < len(changed):
                changed[position] = rng.randrange(256)
            case 1:
                changed[position:position] = rng.randbytes(rng.choice((1, 2, 8)))
            case 2:
                del changed[position : position + rng.choice((1, 2, 9, 64))]
            case _:
                source = rng.randrange(len(changed) + 1)
                changed[position:position] = changed[source : source + rng.choice((1, 4, 32))]
    return bytes(changed)


def _escaped(token: bytes, rng: Random) -> bytes:
    """A text with one character written as JSON's escape, which changes nothing, or so parsers should agree."""
    if len(token) < 3 or token[0] != 0x22 or b"\\" in token:
        return token + token
    position = rng.randrange(1, len(token) - 1)
    return token[:position] + rf"\u{token[position]:04x}".encode() + token[position + 1 :]
