"""Texts to token ids. Long texts are tokenised off the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

from shared.errors import PromptTooLongError

LONG_TEXT_CHARS = 2_000
"""From here on tokenising may take longer than the event loop should wait (about a millisecond)."""


class Encoder(Protocol):
    """The part of a transformers tokenizer that makes token ids."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...


class Tokeniser:
    """One model's tokenizer, and the most tokens that a prompt may have."""

    def __init__(self, tokenizer: Encoder, max_tokens: int, executor: Executor) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._executor = executor

    async def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """The token ids of a text, as the tokenizer has them for the whole of it.

        Raises PromptTooLongError.
        """
        if len(text) < LONG_TEXT_CHARS:
            token_ids = self._encode(text, add_special_tokens)
        else:
            loop = asyncio.get_running_loop()
            token_ids = await loop.run_in_executor(self._executor, self._encode, text, add_special_tokens)
        return self.within_bounds(token_ids)

    def within_bounds(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The same token ids. Raises PromptTooLongError when they leave no room for an answer."""
        if len(token_ids) > self._max_tokens:
            raise PromptTooLongError(len(token_ids), self._max_tokens)
        return token_ids

    def _encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
