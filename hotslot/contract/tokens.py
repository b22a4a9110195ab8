"""Tokens of a model: counted, and with their texts."""

from dataclasses import dataclass
from typing import NamedTuple


class Token(NamedTuple):
    """A token with what it stands for by itself."""

    token_id: int
    text: str
    """With U+FFFD in the place of a part of a character; empty where the tokenizer does not know the token."""
    text_bytes: bytes
    """Those of consecutive tokens make up the UTF-8 of their text; empty where the tokenizer does not tell them."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A prompt's tokens, counted."""

    num_tokens: int
    max_sequence_tokens: int
    """Longest prompt and answer together."""
    token_ids: tuple[int, ...] = ()
    """Only if asked for, and so are the next."""
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodedTokens:
    """Text of tokens."""

    text: str
    tokens: tuple[Token, ...] = ()
    """Only if asked for."""
