"""Turns OpenAI's requests into those of hotslot's client, and names the client's fields as OpenAI does. Pure."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from gateway_service import parameters
from gateway_service.errors import wrong_param
from gateway_service.request_bodies import (
    CallBody,
    ChatBody,
    CompletionBody,
    GenerationBody,
    MessageBody,
    RefusalPartBody,
    parsed,
    prompts_of,
)
from gateway_service.token_bodies import TokenizeBody
from gateway_service.tool_calls import ToolFormat
from hotslot import (
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Logprobs,
    Sampling,
    Stop,
    TextPart,
    ToolCall,
)

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for completions."""
_UINT64 = 2**64

Select = Callable[[str], Sequence[AdapterSelection] | None]


@dataclass(frozen=True, slots=True)
class WantedAnswer:
    """One HTTP request as it is to be served."""

    model: str
    requests: tuple[GenerationRequest, ...]
    """One for each prompt; their adapters are set by `with_adapters`."""
    adapters: tuple[AdapterSelection, ...]
    """The mix that the body names; empty where the model says it all."""
    num_choices: int
    """For each prompt."""
    is_stream: bool
    include_usage: bool
    wants_token_ids: bool
    keeps_stop_string: bool
    echoed: tuple[str, ...] = ()
    """Beginning of each choice's text, by prompt."""
    may_call: bool = False
    """The chat has tools, which the answer may call."""
    tool_formats: Mapping[str, ToolFormat] = field(default_factory=lambda: MappingProxyType({}))
    """Format of the calls in the answer, by the base model that gives it; without one they stay text."""


def chat_from(values: dict[str, Any], request_id: str) -> tuple[WantedAnswer, ChatBody]:
    """A chat; raises ApiError."""
    body = parsed(ChatBody, parameters.supported(parameters.CHAT, values))
    if None not in (limits := (body.max_tokens, body.max_completion_tokens)) and len(set(limits)) == 2:
        raise wrong_param("max_tokens", "differs from max_completion_tokens; give one of them")
    if body.top_logprobs and not body.logprobs:
        raise wrong_param("top_logprobs", "needs logprobs to be true")
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = Logprobs(body.top_logprobs or 0) if body.logprobs else None
    wanted = _wanted(body, (_chat_prompt(body),), max_tokens, logprobs, request_id)
    return replace(wanted, may_call=bool(body.tools) and body.tool_choice != "none"), body


def completion_from(values: dict[str, Any], request_id: str) -> tuple[WantedAnswer, CompletionBody]:
    """A completion; raises ApiError."""
    if "prompt" not in values:
        raise wrong_param("prompt", "must be given")
    body = parsed(CompletionBody, parameters.supported(parameters.COMPLETIONS, values))
    prompts = prompts_of(body.prompt)
    if body.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise wrong_param("echo", "is for prompts of text", "UNSUPPORTED_PARAMETER")
    logprobs = Logprobs(body.logprobs, prompt=bool(body.echo)) if body.logprobs is not None else None
    max_tokens = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    echoed = tuple(str(prompt) for prompt in prompts) if body.echo else ()
    return _wanted(body, tuple(prompts), max_tokens, logprobs, request_id, echoed), body


def _wanted(
    body: GenerationBody,
    prompts: Sequence[ChatPrompt | str | list[int]],
    max_tokens: int | None,
    logprobs: Logprobs | None,
    request_id: str,
    echoed: tuple[str, ...] = (),
) -> WantedAnswer:
    if body.stream_options is not None and not body.stream:
        raise wrong_param("stream_options", "is for streams only; set stream to true")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    ends = Stop(max_tokens, body.min_tokens or 0, stop, body.stop_token_ids or (), bool(body.ignore_eos))
    sampling = _sampling(body)
    requests = tuple(
        GenerationRequest(
            prompt,
            sampling=sampling,
            stop=ends,
            logprobs=logprobs,
            request_id=body.request_id or request_id,
            priority=-(body.priority or 0),
            num_choices=body.n or 1,
            skip_special_tokens=body.skip_special_tokens is not False,
        )
        for prompt in prompts
    )
    mix = tuple(AdapterSelection(part.reference, part.weight) for part in body.adapters or ())
    options = body.stream_options
    return WantedAnswer(
        model=body.model,
        requests=requests,
        adapters=mix,
        num_choices=body.n or 1,
        is_stream=bool(body.stream),
        include_usage=options is not None and bool(options.include_usage),
        wants_token_ids=bool(body.return_token_ids),
        keeps_stop_string=bool(body.include_stop_str_in_output),
        echoed=echoed,
    )


def _sampling(body: GenerationBody) -> Sampling:
    """Each parameter under its own name; these few mean something else here."""
    otherwise: dict[str, Any] = {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_k": max(0, body.top_k or 0),
        "seed": None if body.seed is None else body.seed % _UINT64,
        "logit_bias": _biases(body.logit_bias or {}),
    }
    alike = {field.name: getattr(body, field.name) for field in fields(Sampling) if field.name not in otherwise}
    return Sampling(**otherwise, **{name: value for name, value in alike.items() if value is not None})


def _biases(by_text: dict[str, float]) -> dict[int, float]:
    biases = {}
    for text, bias in by_text.items():
        if not re.fullmatch(r"[0-9]{1,10}", text):
            raise wrong_param("logit_bias", f"found the key {text[:40]!r}, expected a token id")
        biases[int(text)] = bias
    return biases


def counted_from(body: TokenizeBody) -> str | ChatPrompt:
    """A prompt whose tokens are wanted; raises ApiError."""
    if (body.prompt is None) == (body.messages is None):
        raise wrong_param("prompt", "give prompt or messages, and one of them")
    if body.prompt is not None:
        return body.prompt
    return ChatPrompt(
        messages=[_turn(turn, f"messages[{index}]") for index, turn in enumerate(body.messages or ())],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        tools=body.tools or (),
        template_arguments=body.chat_template_kwargs or {},
        template=body.chat_template or "",
    )


def _chat_prompt(body: ChatBody) -> ChatPrompt:
    arguments = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        arguments.setdefault("reasoning_effort", body.reasoning_effort)
    return ChatPrompt(
        messages=[_turn(turn, f"messages[{index}]") for index, turn in enumerate(body.messages)],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        tools=() if body.tool_choice == "none" else body.tools or (),
        template_arguments=arguments,
        template=body.chat_template or "",
    )


def _turn(turn: MessageBody, place: str) -> ChatMessage:
    content: str | list[TextPart] = turn.content if isinstance(turn.content, str) else ""
    if isinstance(turn.content, list):
        content = [TextPart(part.refusal if isinstance(part, RefusalPartBody) else part.text) for part in turn.content]
    return ChatMessage(
        # OpenAI's newer name of the same role, which templates do not know.
        role="system" if turn.role == "developer" else turn.role,
        content=content,
        tool_calls=[_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(turn.tool_calls or ())],
        tool_call_id=turn.tool_call_id or "",
        name=turn.name or "",
        reasoning_content=turn.reasoning_content or turn.reasoning or "",
    )


def _call(call: CallBody, place: str) -> ToolCall:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as exc:
        raise wrong_param(f"{place}.function.arguments", "is not JSON; give an object as text") from exc
    if not isinstance(arguments, dict):
        raise wrong_param(f"{place}.function.arguments", "is no JSON object; give one as text")
    return ToolCall(call.function.name, arguments, call.id)


_RENAMED = (
    (re.compile(r"^sampling\."), ""),
    (re.compile(r"^stop\.stop_strings"), "stop"),
    (re.compile(r"^stop\.(default_)?max_tokens$"), "max_tokens"),
    (re.compile(r"^stop\."), ""),
    (re.compile(r"^num_choices$"), "n"),
    (re.compile(r"^(prompt\.)?(chat\.)?template_arguments(_json)?"), "chat_template_kwargs"),
    (re.compile(r"^(prompt\.)?chat\.tools(_json)?"), "tools"),
    (re.compile(r"^(prompt\.)?chat\.template$"), "chat_template"),
    (re.compile(r"^(prompt\.)?chat\."), ""),
    (re.compile(r"\.parts\b"), ".content"),
    (re.compile(r"(\.tool_calls(\[\d+\])?)\.name$"), r"\1.function.name"),
    (re.compile(r"(\.tool_calls(\[\d+\])?)\.arguments(_json)?$"), r"\1.function.arguments"),
    (re.compile(r"^(prompt\.)?(text|tokens(\.token_ids)?)"), "prompt"),
)


def chat_param(field: str) -> str:
    """A field of our protocol as chats call it."""
    renamed = {"prompt": "messages", "logprobs.num_alternatives": "top_logprobs"}.get(field)
    return renamed or _renamed(field)


def detokenize_param(field: str) -> str:
    """A field of our protocol as `/detokenize` calls it."""
    return re.sub(r"^token_ids", "tokens", field)


def completion_param(field: str) -> str:
    """A field of our protocol as completions call it."""
    return "logprobs" if field.startswith("logprobs.") else _renamed(field)


def _renamed(field: str) -> str:
    for pattern, replacement in _RENAMED:
        field = pattern.sub(replacement, field)
    # A reference that a request names as its model is the only adapter there is.
    return "model" if field in ("reference", "adapters.reference") else field
