"""Texts to token ids: long ones in pieces, off the event loop, and none that could not fit.

A text that is too long for any prompt is refused after a look at its characters where the tokenizer is one of which a
bound is known, and after as many pieces as fit where it can be cut; only the others are tokenised whole.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import structlog

from hotslot.errors import PromptTooLongError
from worker_service.front.prompt_threads import PromptThreads
from worker_service.front.text_cuts import TextCuts
from worker_service.front.token_bound import TokenBound

log = structlog.get_logger(__name__)

LONG_TEXT_CHARS = 2_000
"""From here on tokenising may take longer than the event loop should wait (about a millisecond)."""
PIECE_CHARS = 32_768
"""Characters that are tokenised, or looked at, at a time: some tens of milliseconds."""
MAX_WAITING_CHARS = 64 * 2**20
"""Most characters of all texts that are tokenised or wait for it: sixteen requests of the largest size."""

T = TypeVar("T")


class Encoder(Protocol):
    """The part of a transformers tokenizer that makes token ids.

    One that the `tokenizers` library runs has that library's object as `backend_tokenizer`.
    """

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...


class Tokeniser:
    """One model's tokenizer, and the most tokens that a prompt may have. Belongs to one event loop."""

    def __init__(self, tokenizer: Encoder, max_tokens: int, threads: PromptThreads) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._threads = threads
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._bound = _known_of(TokenBound, backend)
        self._cuts = _known_of(TextCuts, backend)
        self._around = _added_around(tokenizer)

    async def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """The token ids of a text, as the tokenizer has them for the whole of it.

        Raises PromptTooLongError, and QueueFullError when too much waits to be tokenised.
        """
        if len(text) < LONG_TEXT_CHARS:
            return self.within_bounds(self._encode(text, add_special_tokens))
        with self._threads.place_for(len(text), MAX_WAITING_CHARS):
            await self._refuse_beyond_bound(text)
            if len(text) < 2 * PIECE_CHARS:
                return self.within_bounds(await self._threads.short(self._encode, text, add_special_tokens))
            if self._cuts is None or self._around is None:
                return self.within_bounds(await self._threads.long(self._encode, text, add_special_tokens))
            begin, end = self._around if add_special_tokens else ([], [])
            token_ids = list(begin)
            for piece in self._cuts.pieces(text, PIECE_CHARS):
                token_ids += await self._threads.long(self._encode, piece, False)
                if len(token_ids) > self._max_tokens:
                    raise PromptTooLongError(len(token_ids), self._max_tokens, at_least=True)
            return self.within_bounds(token_ids + end)

    def bounded(self, max_tokens: int) -> "Tokeniser":
        """The same tokeniser with another bound."""
        other = copy.copy(self)
        other._max_tokens = max_tokens
        return other

    def within_bounds(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The same token ids. Raises PromptTooLongError when they leave no room for an answer."""
        if len(token_ids) > self._max_tokens:
            raise PromptTooLongError(len(token_ids), self._max_tokens)
        return token_ids

    async def refuse_beyond_bound(self, texts: Sequence[str]) -> None:
        """Raise PromptTooLongError where no prompt with these texts in it can fit, whatever the case of its letters."""
        num_chars = sum(map(len, texts))
        if self._bound is not None and num_chars > max(self._max_tokens, LONG_TEXT_CHARS):
            with self._threads.place_for(num_chars, MAX_WAITING_CHARS):
                await self._add_up(
                    "".join(texts), lambda bound, text: min(map(bound.of, (text, text.lower(), text.upper())))
                )

    async def _refuse_beyond_bound(self, text: str) -> None:
        """Add up what its characters weigh, as far as that may decide."""
        if len(text) > self._max_tokens:
            await self._add_up(text, TokenBound.of)

    async def _add_up(self, text: str, fewest_of: Callable[[TokenBound, str], float]) -> None:
        if self._bound is None:
            return
        fewest = 0.0
        for begin in range(0, len(text), PIECE_CHARS):
            fewest += await self._threads.short(fewest_of, self._bound, text[begin : begin + PIECE_CHARS])
            # Sums of floats may be off in their last digits.
            if fewest > self._max_tokens + 0.5:
                raise PromptTooLongError(max(int(fewest), self._max_tokens + 1), self._max_tokens, at_least=True)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _known_of(kind: Callable[[Any], T], backend: Any) -> T | None:
    """Knowledge of a tokenizer; None where there is none."""
    if backend is None:
        return None
    try:
        return kind(backend)
    except ValueError as exc:
        log.info("long_texts_are_tokenised_whole", why=str(exc))
        return None


def _added_around(tokenizer: Encoder) -> tuple[list[int], list[int]] | None:
    """The special tokens that a tokenizer puts before and after every text; None where it does something else."""
    alone = list(tokenizer.encode("a", add_special_tokens=False))
    dressed = list(tokenizer.encode("a", add_special_tokens=True))
    for size in range(len(dressed) - len(alone) + 1):
        if dressed[size : size + len(alone)] == alone:
            return dressed[:size], dressed[size + len(alone) :]
    return None
