"""Token ids of a prompt, computed the plain way: transformers' own Jinja, and the whole text in one call."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

from hotslot.contract.generation import ChatPrompt, JsonText
from hotslot.errors import PromptTooLongError
from tools.fuzz.request.models import (
    BACKEND,
    LIMITS,
    MAX_SEQUENCE_TOKENS,
    SPECIAL_IDS,
    Model,
)
from tools.fuzz.target import require
from worker_service.front.prompts import PlainPrompt
from worker_service.templates.content import Form

VARIABLES = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
_BEGIN = BACKEND.encode("", add_special_tokens=True).ids[0]


def check_tokens(model: Model, prompt: PlainPrompt, token_ids: Sequence[int]) -> None:
    """Raise OracleError for token ids that are not the prompt's."""
    require(0 < len(token_ids) < MAX_SEQUENCE_TOKENS, f"{len(token_ids)} tokens")
    require(all(0 <= token_id < LIMITS.vocab_size for token_id in token_ids), "a token beyond the embedding")
    if isinstance(prompt, ChatPrompt):
        _check_chat(model, prompt, token_ids)
    elif isinstance(prompt, str):
        require(list(token_ids) == _of_text(prompt), "not the text's tokens")
    else:
        require(tuple(token_ids) == prompt, "not the given tokens")


def check_length(prompt: PlainPrompt, error: PromptTooLongError) -> None:
    """Raise OracleError for a prompt that would have fitted."""
    if isinstance(prompt, str):
        require(len(_of_text(prompt)) >= MAX_SEQUENCE_TOKENS, f"it fits, in spite of: {error.message}")
    elif not isinstance(prompt, ChatPrompt):
        require(len(prompt) >= MAX_SEQUENCE_TOKENS, f"it fits, in spite of: {error.message}")


def _of_text(text: str) -> list[int]:
    found = list(BACKEND.encode(text, add_special_tokens=False).ids)
    return found if found[:1] == [_BEGIN] else [_BEGIN, *found]


def _check_chat(model: Model, chat: ChatPrompt, token_ids: Sequence[int]) -> None:
    source, forms = _template(model, chat)
    texts = [text for form in forms for text in [_rendered(source, form, chat)] if text is not None]
    if not texts:
        return
    if chat.allow_special_tokens or not _spells_specials(chat):
        expected = [list(BACKEND.encode(text, add_special_tokens=False).ids) for text in texts]
        require(list(token_ids) in expected, "not the tokens of what transformers renders")
        return
    shown = BACKEND.decode(list(token_ids), skip_special_tokens=False)
    require(shown in texts, "not the text that transformers renders")
    most = max(sum(i in SPECIAL_IDS for i in BACKEND.encode(text, add_special_tokens=False).ids) for text in texts)
    require(sum(token_id in SPECIAL_IDS for token_id in token_ids) <= most, "special tokens out of nothing")


def _template(model: Model, chat: ChatPrompt) -> tuple[str, tuple[Form, ...]]:
    name = chat.template
    if not name:
        name = "tool_use" if chat.tools and "tool_use" in model.templates else "default"
    return model.templates[name], model.forms[name]


@cache
def _compiled(source: str) -> Any:
    return _compile_jinja_template(source)


def _rendered(source: str, form: Form, chat: ChatPrompt) -> str | None:
    """The prompt as transformers makes it; None where a message is continued, which has rules of its own."""
    if chat.continue_final_message:
        return None
    arguments = json.loads(text_of(chat.template_arguments))
    try:
        shown = _compiled(source).render(
            {**VARIABLES, **arguments},
            messages=[_message(message, form) for message in chat.messages],
            tools=[json.loads(text_of(tool)) for tool in chat.tools] or None,
            documents=arguments.get("documents"),
            add_generation_prompt=chat.add_generation_prompt,
        )
    except Exception:  # noqa: BLE001 (in this form the template takes nothing; the other one has rendered it)
        return None
    return str(shown)


def _message(message: Any, form: Form) -> dict[str, Any]:
    texts = [part.text for part in message.parts] or ([message.content] if message.content else [])
    content: Any = "\n".join(texts) if form is Form.STRING else [{"type": "text", "text": text} for text in texts]
    made: dict[str, Any] = {"role": message.role, "content": content}
    for name in ("tool_call_id", "name", "reasoning_content"):
        if getattr(message, name):
            made[name] = getattr(message, name)
    if message.reasoning_content:
        made["thinking"] = message.reasoning_content
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(text_of(call.arguments))},
            }
            for call in message.tool_calls
        ]
    return made


def _spells_specials(chat: ChatPrompt) -> bool:
    """Tell, generously, that a special token's text may come about in what the user says."""
    strings = [text_of(chat.template_arguments), *map(text_of, chat.tools)]
    for message in chat.messages:
        strings += [message.role, str(message.content), message.name, message.tool_call_id, message.reasoning_content]
        strings += [part.text for part in message.parts if part is not None]
        strings += [text for call in message.tool_calls for text in (call.id, call.name, text_of(call.arguments))]
    return any(mark in text for text in strings for mark in "<>|\\")


def text_of(document: Any) -> str:
    """JSON as it arrived; nothing is an empty object."""
    require(isinstance(document, JsonText), "JSON that was parsed in the front")
    return document or "{}"
