"""Chats to token ids: rendered by the model's template, special tokens that the user wrote out being text."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from hotslot.contract.generation import ChatMessage, ChatPrompt
from hotslot.errors import FieldViolation, InvalidRequestError, UnavailableError
from worker_service.front.prompt_threads import PromptThreads
from worker_service.front.stand_ins import StandIns, cannot_keep
from worker_service.front.tokenising import Tokeniser
from worker_service.templates.process import ModelTemplates, TemplateProcesses

log = structlog.get_logger(__name__)

_ANSWERING = frozenset({"assistant", "model"})
_PROBE = ChatPrompt((ChatMessage("user", "hello"),))


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that chats need."""

    chat_template: Any
    """Jinja's source, or several by name; nothing where the model has none."""
    added_tokens_decoder: Mapping[int, Any]
    """Tokens that are not the model's own, with whether they are special."""
    special_tokens_map: Mapping[str, Any]
    """Texts of special tokens by what they are for, such as `bos_token`."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...


class Chats:
    """One model's chat templates, with its tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer, max_tokens: int, tokeniser: Tokeniser, threads: PromptThreads) -> None:
        self._tokenizer = tokenizer
        self._tokeniser = tokeniser
        self._max_tokens = max_tokens
        self._threads = threads
        self._sources = _sources(tokenizer.chat_template)
        specials = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._needs_stand_ins = _normalises_specials(tokenizer)
        variables = json.loads(json.dumps(dict(tokenizer.special_tokens_map), default=str))
        self._processes = TemplateProcesses(ModelTemplates(self._sources, specials, variables))
        self._stand_ins: asyncio.Task[tuple[StandIns, Tokeniser]] | None = None

    @property
    def has_template(self) -> bool:
        """True if the model has a template."""
        return bool(self._sources)

    async def prepare(self) -> None:
        """Start a process and have it look at the template; one that cannot be used is told in the log."""
        if self._sources:
            try:
                await self._processes.render(request_of(_PROBE))
            except (InvalidRequestError, UnavailableError) as exc:
                log.warning("chat_template_refuses", why=exc.message)

    def close(self) -> None:
        """End the processes that render."""
        self._processes.close()

    async def encode(self, prompt: ChatPrompt, max_tokens: int | None = None) -> Sequence[int]:
        """The chat's token ids, at most as many as a prompt may have where nothing else is said.

        Raises PromptTooLongError, and InvalidRequestError in the template's own words.
        """
        max_tokens = self._max_tokens if max_tokens is None else max_tokens
        if not self._sources:
            raise InvalidRequestError([FieldViolation("chat", "this model has no chat template; give text instead")])
        plain = self._tokeniser.bounded(max_tokens)
        await plain.refuse_beyond_bound(_kept_texts(prompt))
        rendered = await self._processes.render(request_of(prompt))
        is_ordinary = prompt.allow_special_tokens or not self._needs_stand_ins
        if is_ordinary and not rendered.mark:
            # The template writes the special tokens itself.
            return await plain.encode(rendered.text, add_special_tokens=False)
        stand_ins, tokeniser = await self._made_stand_ins()
        written, num_specials = await self._threads.long(stand_ins.written, rendered.text, rendered.mark)
        token_ids = await tokeniser.bounded(max_tokens).encode(written, add_special_tokens=False)
        stand_ins.check(num_specials, token_ids)
        return token_ids

    async def _made_stand_ins(self) -> tuple[StandIns, Tokeniser]:
        """Made once, when first needed."""
        if self._stand_ins is None:
            if not hasattr(self._tokenizer, "backend_tokenizer"):
                raise cannot_keep()
            self._stand_ins = asyncio.create_task(self._threads.long(self._make_stand_ins))
        return await asyncio.shield(self._stand_ins)

    def _make_stand_ins(self) -> tuple[StandIns, Tokeniser]:
        backed: Any = self._tokenizer
        stand_ins = StandIns(backed)
        return stand_ins, Tokeniser(stand_ins, self._max_tokens, self._threads)


def _kept_texts(prompt: ChatPrompt) -> list[str]:
    """Texts that a template cannot leave out, but for white space around them: of answers it may cut thoughts."""
    others = (message for message in prompt.messages if message.role not in _ANSWERING)
    return [text.strip() for message in others for text in (str(message.content), *_texts(message)) if text]


def texts_of(prompt: ChatPrompt) -> list[str]:
    """All texts of a chat's messages."""
    return [text for message in prompt.messages for text in (str(message.content), *_texts(message))]


def _texts(message: ChatMessage) -> tuple[str, ...]:
    """Texts of a content in parts."""
    return tuple([part.text for part in message.parts if part is not None])


def _sources(chat_template: Any) -> dict[str, str]:
    if isinstance(chat_template, Mapping):
        return {str(name): str(source) for name, source in chat_template.items()}
    return {"default": str(chat_template)} if chat_template else {}


def _normalises_specials(tokenizer: ChatTokenizer) -> bool:
    """Tell whether special tokens are looked for in text that was changed first, so that further texts are one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is None:
        return False
    return any(token.special and token.normalized for token in tokenizer.added_tokens_decoder.values())


def request_of(prompt: ChatPrompt) -> dict[str, Any]:
    """Request to the process that renders."""
    return {
        "messages": [_message(message) for message in prompt.messages],
        "tools_json": tuple(prompt.tools),
        "template_arguments_json": prompt.template_arguments,
        "opens_turn": prompt.add_generation_prompt is not False and not prompt.continue_final_message,
        "continues": prompt.continue_final_message,
        "allow_special_tokens": prompt.allow_special_tokens,
        "template": prompt.template,
    }


def _message(message: ChatMessage) -> dict[str, Any]:
    calls = [{"id": c.id, "name": c.name, "arguments_json": c.arguments} for c in message.tool_calls]
    return {
        "role": message.role,
        "content": message.content,
        "parts": _texts(message),
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning_content,
    }
