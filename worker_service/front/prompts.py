"""Prompts to token ids: chats are rendered, texts tokenised, token ids taken as they are."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from hotslot.contract.generation import ChatPrompt
from hotslot.errors import EmptyPromptError
from worker_service.front.chats import Chats, texts_of
from worker_service.front.detokenizer import Decode, Decoding
from worker_service.front.prompt_threads import PromptThreads
from worker_service.front.token_texts import TokenTexts
from worker_service.front.tokenising import LONG_TEXT_CHARS, Tokeniser

PlainPrompt = str | ChatPrompt | Sequence[int]
"""A text, a chat, or token ids."""
MAX_COUNTED_TOKENS = 2**20
"""Most tokens that are counted."""
MAX_COUNTING_CHARS = 16 * 2**20
"""Most characters that are tokenised or wait for it when a long prompt comes to be counted: prompts to answer have more
room."""
_LETTER = "a"
"""A text that no tokenizer takes for a special token."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    chat_template: Any
    """Jinja's source, or several by name; nothing where the model has none."""
    added_tokens_decoder: Mapping[int, Any]
    """Tokens that are not the model's own, with whether they are special."""
    special_tokens_map: Mapping[str, Any]
    """Texts of special tokens by what they are for, such as `bos_token`."""
    all_special_ids: Sequence[int]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """Token ids to text."""
        ...


class PromptEncoder:
    """One model's tokenizer and its bounds. Belongs to one event loop."""

    def __init__(self, tokenizer: Tokenizer, max_sequence_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._threads = PromptThreads()
        self._tokeniser = Tokeniser(tokenizer, max_sequence_tokens - 1, self._threads)
        self._chats = Chats(tokenizer, max_sequence_tokens - 1, self._tokeniser, self._threads)
        self._begin = _added_before(tokenizer)
        self._counting = asyncio.Semaphore()
        complete = self._decoder(skip=False)
        texts = TokenTexts(getattr(tokenizer, "backend_tokenizer", None), complete)
        self.decoding = Decoding(self._decoder(skip=True), complete, _special_token_ids(tokenizer), texts.of)

    @property
    def has_chat_template(self) -> bool:
        """True if chat prompts are understood."""
        return self._chats.has_template

    async def prepare(self) -> None:
        """Make the first chat as quick as those after it."""
        await self._chats.prepare()

    def close(self) -> None:
        """End the processes that render chats, and let go of the threads that tokenise."""
        self._chats.close()
        self._threads.close()

    async def encode(self, prompt: PlainPrompt) -> tuple[int, ...]:
        """The prompt's token ids.

        Raises EmptyPromptError, PromptTooLongError, InvalidRequestError when the chat template refuses, and
        QueueFullError when too much waits to be tokenised.
        """
        token_ids = await self._encode(prompt)
        if not token_ids:
            raise EmptyPromptError()
        return tuple(token_ids)

    async def count(self, prompt: str | ChatPrompt, *, add_special_tokens: bool) -> Sequence[int]:
        """Token ids of a prompt that need not fit. Long ones take turns, so that prompts to answer are not held up.

        Raises PromptTooLongError beyond MAX_COUNTED_TOKENS, InvalidRequestError when the chat template refuses, and
        QueueFullError when too much waits to be counted.
        """
        num_chars = len(prompt) if isinstance(prompt, str) else sum(map(len, texts_of(prompt)))
        if num_chars < LONG_TEXT_CHARS:
            return await self._counted(prompt, add_special_tokens=add_special_tokens)
        with self._threads.place_for(num_chars, MAX_COUNTING_CHARS):
            async with self._counting:
                return await self._counted(prompt, add_special_tokens=add_special_tokens)

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens."""
        decode = self.decoding.plain if skip_special_tokens else self.decoding.complete
        return await self._threads.long(decode, list(token_ids))

    def token_text(self, token_id: int) -> str:
        """One token as a prompt would have it, special ones too; empty where the tokenizer does not know it."""
        return self.decoding.complete([token_id])

    async def _counted(self, prompt: str | ChatPrompt, *, add_special_tokens: bool) -> Sequence[int]:
        if isinstance(prompt, ChatPrompt):
            return await self._chats.encode(prompt, MAX_COUNTED_TOKENS)
        found = await self._tokeniser.bounded(MAX_COUNTED_TOKENS).encode(prompt, add_special_tokens=False)
        return self._begun(found) if add_special_tokens else found

    def _begun(self, found: Sequence[int]) -> Sequence[int]:
        """A text's tokens with those before every text, unless it begins with them."""
        has_begin = not self._begin or list(found[:1]) == self._begin[:1]
        return found if has_begin else [*self._begin, *found]

    async def _encode(self, prompt: PlainPrompt) -> Sequence[int]:
        if isinstance(prompt, ChatPrompt):
            return await self._chats.encode(prompt)
        if not isinstance(prompt, str):
            return self._tokeniser.within_bounds(prompt)
        # A prompt is the beginning of a text: an end that the tokenizer would add is none.
        found = await self._tokeniser.encode(prompt, add_special_tokens=False)
        return self._tokeniser.within_bounds(self._begun(found))

    def _decoder(self, *, skip: bool) -> Decode:
        return partial(self._tokenizer.decode, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


def _added_before(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer puts before every text."""
    alone = list(tokenizer.encode(_LETTER, add_special_tokens=False))
    dressed = list(tokenizer.encode(_LETTER, add_special_tokens=True))
    for size in range(len(dressed) - len(alone) + 1):
        if dressed[size : size + len(alone)] == alone:
            return dressed[:size]
    return []


def _special_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset((*added, *tokenizer.all_special_ids))
