"""Texts and bytes of single tokens, for log-probabilities and for callers who ask for them. Pure.

What a token decodes to alone is not what it adds to a text: decoders drop the first space of what they are given, and
bytes of a character only make one together. So a token is read from the vocabulary, by the rules of its decoder, where
they are known; else it is decoded alone.
"""

from collections.abc import Callable
from typing import Any

from hotslot.contract.tokens import Token
from worker_service.front.detokenizer import REPLACEMENT, Decode
from worker_service.front.token_bound import byte_alphabet, parts_of

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""Character in the place of a space in vocabularies of SentencePiece."""
_BYTE_TOKEN_CHARS = len("<0x00>")

ReadPiece = Callable[[str], bytes]
"""A token of the vocabulary to the bytes that it stands for."""


class TokenTexts:
    """Tokens of one model by their ids, each read once."""

    def __init__(self, backend: Any, decode: Decode) -> None:
        """`backend` is the `tokenizers` library's object, None where there is none; `decode` keeps special tokens."""
        self._backend = backend
        self._decode = decode
        self._read = _reader_of(backend)
        added = backend.get_added_tokens_decoder() if backend is not None else {}
        self._added = {token_id: token.content.encode() for token_id, token in added.items()}
        self._known: dict[int, Token] = {}

    def of(self, token_id: int) -> Token:
        """A token; one that the tokenizer does not know has no text."""
        known = self._known.get(token_id)
        if known is None:
            # Bounded by the vocabulary: requests name no other tokens, and the model makes none.
            known = self._known[token_id] = self._made(token_id)
        return known

    def _made(self, token_id: int) -> Token:
        own = self._added.get(token_id)
        if own is None and self._read is not None:
            piece = self._backend.id_to_token(token_id)
            own = self._read(piece) if piece is not None else b""
        if own is not None:
            return Token(token_id, own.decode(errors="replace"), own)
        text = self._decode([token_id])
        return Token(token_id, text, b"" if REPLACEMENT in text else text.encode())


def _reader_of(backend: Any) -> ReadPiece | None:
    """The rules of a tokenizer's decoder; None where they are not known."""
    decoders = parts_of(backend.decoder, "decoders") if backend is not None else []
    kinds = [part["type"] for part in decoders]
    if kinds == ["ByteLevel"]:
        return _read_byte_level
    if kinds == ["Metaspace"]:
        mark = decoders[0]["replacement"]
        return lambda piece: piece.replace(mark, " ").encode()
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "Replace" in kinds:
        replaced = [part for part in decoders if part["type"] == "Replace"]
        if len(replaced) == 1 and replaced[0]["content"] == " " and replaced[0]["pattern"] == {"String": SPACE_MARK}:
            return _read_with_bytes if "ByteFallback" in kinds else _read_marked
    return None


def _read_byte_level(piece: str) -> bytes:
    try:
        return bytes([_BYTES[character] for character in piece])
    except KeyError:
        # As the decoder does with a token that is not written in its alphabet.
        return piece.encode()


def _read_marked(piece: str) -> bytes:
    return piece.replace(SPACE_MARK, " ").encode()


def _read_with_bytes(piece: str) -> bytes:
    if len(piece) == _BYTE_TOKEN_CHARS and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return _read_marked(piece)


_BYTES = {character: byte for byte, character in byte_alphabet().items()}
