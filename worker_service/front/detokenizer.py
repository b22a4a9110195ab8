"""Turns tokens into text as they come, so that the pieces put together are the text of the whole.

A token's text depends on its neighbours (SentencePiece drops the first space of what it decodes; characters may
span several tokens), so each piece is the difference between decoding a short window with and without the new
tokens: the technique of text-generation-inference and vLLM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hotslot.contract.tokens import Token

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT_TOKENS = 6
"""Tokens of the prompt that the window begins with."""
MAX_BYTES_OF_CHARACTER = 4
MAX_HELD_TOKENS = 12
"""More tokens than any character has: what is still no text then never will be, but for the last ones."""

Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""
TokenOf = Callable[[int], Token]
"""A token by its id."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """Text of one model's tokens, as it is shown and as it is."""

    plain: Decode
    """Leaves special tokens out."""
    complete: Decode
    special_token_ids: frozenset[int]
    token: TokenOf


class Detokenizer:
    """One answer's text, piece by piece.

    **Invariant**: no piece ends within a character, and the pieces so far are a prefix of the whole text.
    """

    def __init__(self, decode: Decode, prompt_token_ids: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(_context(decode, prompt_token_ids))
        self._num_known = len(self._window)
        self._known_chars = len(decode(self._window).rstrip(REPLACEMENT)) if self._window else 0

    def feed(self, token_id: int) -> str:
        """The text that has become certain with one more token; often one word, sometimes nothing."""
        self._window.append(token_id)
        text = self._decode(self._window)
        certain = text.rstrip(REPLACEMENT)
        num_held = len(self._window) - self._num_known
        if len(certain) < len(text):
            # The tail may be the beginning of a character.
            if num_held <= MAX_HELD_TOKENS:
                piece = certain[self._known_chars :]
                self._known_chars = max(self._known_chars, len(certain))
                return piece
            head = self._cut_before_open(text)
            if head is not None:
                piece, self._known_chars = head[self._known_chars :], 0
                return piece
            certain = text
        piece = certain[self._known_chars :]
        if not piece:
            if num_held > MAX_HELD_TOKENS:
                self._slide()
            return ""
        self._slide()
        return piece

    def twin(self, decode: Decode) -> "Detokenizer":
        """A second detokenizer of the same tokens, as far along, that decodes them in another way from now on."""
        twin = Detokenizer(decode, ())
        unknown_chars = len(self._decode(self._window)) - self._known_chars
        twin._window, twin._num_known = list(self._window), self._num_known
        twin._known_chars = max(0, len(decode(self._window)) - unknown_chars)
        return twin

    def _cut_before_open(self, text: str) -> str | None:
        """Give up the window's tokens but the last ones, which may still become a character; the text before those.

        None where their text depends on what is before them; then they are given up, too.
        """
        for size in range(MAX_BYTES_OF_CHARACTER - 1, 0, -1):
            head, tail = self._decode(self._window[:-size]), self._decode(self._window[-size:])
            if tail and not tail.strip(REPLACEMENT) and head + tail == text and len(head) >= self._known_chars:
                self._window, self._num_known = self._window[-size:], 0
                return head
        return None

    def _slide(self) -> None:
        """Everything in the window is known now: keep its end as the context of what comes."""
        tail = self._window[self._num_known :]
        text = self._decode(tail)
        # A prompt may end within a character; cutting there again would tear it.
        if text.startswith(REPLACEMENT):
            text = self._decode(self._window)
        else:
            self._window = tail
        self._num_known = len(self._window)
        self._known_chars = len(text)


def _context(decode: Decode, prompt_token_ids: Sequence[int]) -> Sequence[int]:
    """The prompt's end, a little more of it where that would begin within a character."""
    context = prompt_token_ids[-CONTEXT_TOKENS:]
    for size in range(CONTEXT_TOKENS, CONTEXT_TOKENS + MAX_BYTES_OF_CHARACTER):
        context = prompt_token_ids[-size:]
        if not decode(context).startswith(REPLACEMENT):
            break
    return context
