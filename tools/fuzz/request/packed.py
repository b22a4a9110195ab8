"""One request as a run of bytes, with what a server has beside it: its model, and the tokens that this one answers."""

import struct
from dataclasses import dataclass

from tests.support.request_messages import varint

MAX_REPEATED_BYTES = 160 * 1024
"""Most bytes of a piece with all of its repetitions: 65,536 numbers that stand one by one, and then some."""
MAX_ANSWER_TOKENS = 48
_HEAD = struct.Struct("<BBBBI")
_PLACE, _SHALLOW = 0x0F, 0x80


@dataclass(frozen=True, slots=True)
class PackedRequest:
    """A message on the wire, of which a piece may stand many times: small inputs reach bounds of many entries."""

    message: bytes
    model: int = 0
    answer: bytes = b""
    """A token for each byte."""
    place: int = 0
    """Number of the message's field that holds the repeated piece, 0 for the message itself."""
    piece_bytes: int = 0
    """Length of the part of the beginning of `message` that is repeated."""
    num_pieces: int = 1
    is_shallow: bool = False
    """Is checked, and not rendered, tokenised or answered: that takes twenty times as long."""

    def to_bytes(self) -> bytes:
        """Head, answer, message."""
        place = self.place & _PLACE | (0 if not self.is_shallow else _SHALLOW)
        head = _HEAD.pack(self.model & 255, len(self.answer), place, self.piece_bytes, self.num_pieces)
        return head + self.answer + self.message

    @classmethod
    def from_bytes(cls, data: bytes) -> "PackedRequest":
        """Any bytes are a request."""
        model, num_tokens, place, piece_bytes, num_pieces = _HEAD.unpack(data[: _HEAD.size].ljust(_HEAD.size, b"\0"))
        rest = data[_HEAD.size :]
        num_tokens = min(num_tokens, MAX_ANSWER_TOKENS)
        is_shallow = bool(place & _SHALLOW)
        return cls(rest[num_tokens:], model, rest[:num_tokens], place & _PLACE, piece_bytes, num_pieces, is_shallow)

    def wire(self) -> bytes:
        """Bytes that go over the wire."""
        piece, rest = self.message[: self.piece_bytes], self.message[self.piece_bytes :]
        if not piece:
            return rest
        piece *= min(self.num_pieces, MAX_REPEATED_BYTES // len(piece))
        if self.place:
            piece = varint(self.place << 3 | 2) + varint(len(piece)) + piece
        return piece + rest
