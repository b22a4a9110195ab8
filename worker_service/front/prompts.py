"""Prompts to token ids. Long texts are tokenised off the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

from jinja2 import TemplateError

from shared.errors import EmptyPromptError, FieldViolation, InvalidRequestError, PromptTooLongError
from worker_service.front.requests import ChatPrompt, Prompt, TextPrompt, TokenPrompt

LONG_TEXT_CHARS = 2_000
"""From here on tokenising may take longer than the event loop should wait (about a millisecond)."""

CHARS_PER_TURN = 20
"""What a chat template writes around a message, about."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    chat_template: Any

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
        self._max_prompt_tokens = max_sequence_tokens - 1
        self._executor = executor

    @property
    def has_chat_template(self) -> bool:
        """Whether chat prompts are understood."""
        return bool(self._tokenizer.chat_template)

    async def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids.

        Raises EmptyPromptError, PromptTooLongError, and InvalidRequestError when the chat template refuses.
        """
        if isinstance(prompt, TextPrompt | ChatPrompt) and _num_chars(prompt) >= LONG_TEXT_CHARS:
            loop = asyncio.get_running_loop()
            token_ids = await loop.run_in_executor(self._executor, self._encode, prompt)
        else:
            token_ids = self._encode(prompt)
        if not token_ids:
            raise EmptyPromptError()
        if len(token_ids) > self._max_prompt_tokens:
            raise PromptTooLongError(len(token_ids), self._max_prompt_tokens)
        return tuple(token_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        match prompt:
            case TokenPrompt(token_ids):
                return token_ids
            case TextPrompt(text):
                return self._tokenizer.encode(text, add_special_tokens=True)
            case ChatPrompt():
                # The template writes the special tokens itself.
                return self._tokenizer.encode(self._render(prompt), add_special_tokens=False)

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


def _num_chars(prompt: TextPrompt | ChatPrompt) -> int:
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    return sum(len(message.content) + CHARS_PER_TURN for message in prompt.messages)
