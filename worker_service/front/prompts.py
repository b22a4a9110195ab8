"""Prompts to token ids: chats are rendered, texts tokenised, token ids taken as they are."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, Protocol

from jinja2 import TemplateError

from shared.errors import EmptyPromptError, FieldViolation, InvalidRequestError
from worker_service.front.detokenizer import Decode, Decoding
from worker_service.front.prompt_threads import PromptThreads
from worker_service.front.requests import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from worker_service.front.tokenising import LONG_TEXT_CHARS, Tokeniser

CHARS_PER_TURN = 20
"""What a chat template writes around a message, about."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    chat_template: Any
    added_tokens_decoder: Mapping[int, Any]
    """Tokens that are not the model's own, with whether they are special."""
    all_special_ids: Sequence[int]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """Token ids to text."""
        ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Messages to text."""
        ...


class PromptEncoder:
    """One model's tokenizer and its bounds."""

    def __init__(self, tokenizer: Tokenizer, max_sequence_tokens: int, executor: Executor) -> None:
        self._tokenizer = tokenizer
        self._threads = PromptThreads()
        self._tokeniser = Tokeniser(tokenizer, max_sequence_tokens - 1, self._threads)
        self._executor = executor
        self.decoding = Decoding(self._decoder(skip=True), self._decoder(skip=False), _special_token_ids(tokenizer))

    @property
    def has_chat_template(self) -> bool:
        """Whether chat prompts are understood."""
        return bool(self._tokenizer.chat_template)

    def close(self) -> None:
        """Let go of the threads that tokenise."""
        self._threads.close()

    async def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids.

        Raises EmptyPromptError, PromptTooLongError, InvalidRequestError when the chat template refuses, and
        QueueFullError when too much waits to be tokenised.
        """
        token_ids = await self._encode(prompt)
        if not token_ids:
            raise EmptyPromptError()
        return tuple(token_ids)

    def _decoder(self, *, skip: bool) -> Decode:
        return partial(self._tokenizer.decode, skip_special_tokens=skip, clean_up_tokenization_spaces=False)

    def token_text(self, token_id: int) -> str:
        """One token as a prompt would have it, special ones too; empty where the tokenizer does not know it."""
        return self._decoder(skip=False)([token_id])

    async def _encode(self, prompt: Prompt) -> Sequence[int]:
        match prompt:
            case TokenPrompt(token_ids):
                return self._tokeniser.within_bounds(token_ids)
            case TextPrompt(text):
                return await self._tokeniser.encode(text, add_special_tokens=True)
            case ChatPrompt():
                # The template writes the special tokens itself.
                return await self._tokeniser.encode(await self._rendered(prompt), add_special_tokens=False)

    async def _rendered(self, prompt: ChatPrompt) -> str:
        if _num_chars(prompt) < LONG_TEXT_CHARS:
            return self._render(prompt)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._render, prompt)

    def _render(self, prompt: ChatPrompt) -> str:
        if not self.has_chat_template:
            raise InvalidRequestError([FieldViolation("chat", "this model has no chat template; give text instead")])
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt.add_generation_prompt
            )
        except TemplateError as exc:
            raise InvalidRequestError(
                [FieldViolation("chat.messages", f"the model's chat template refuses them: {exc}")]
            ) from exc


def _special_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset((*added, *tokenizer.all_special_ids))


def _num_chars(prompt: ChatPrompt) -> int:
    return sum(len(message.content) + CHARS_PER_TURN for message in prompt.messages)
