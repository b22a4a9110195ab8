"""Bodies of requests, as OpenAI and vLLM have them: pydantic models, from which the OpenAPI document is made too."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gateway_service.errors import wrong_param
from gateway_service.parameters import NO_CONSTRAINT

MAX_PROMPTS = 64
MAX_CHOICES = 1024
"""For one prompt; workers have fewer rows than that."""
MAX_SHOWN_CHARS = 60
_INT64 = 2**63

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """Base of all bodies and their parts: no value is converted, nothing unknown is taken."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)


def _plain_text(parts: object) -> object:
    """Refuse parts other than text by their kind, before their fields are looked at."""
    if isinstance(parts, list):
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in ("text", "refusal"):
                raise ValueError(f"found a part of type {kind[:40]!r}, there is text only")
    elif parts is not None and not isinstance(parts, str):
        raise ValueError("expected text, or a list of parts of type 'text'")
    return parts


def _unforced(choice: object) -> object:
    """Refuse what would force a call, with the reason."""
    if choice == "required" or isinstance(choice, dict):
        raise ValueError(f"a call cannot be forced, as {NO_CONSTRAINT}; give 'auto' or 'none'")
    return choice


def _unconstrained(format_: object) -> object:
    """Refuse forms that tokens would have to be constrained for, with the reason."""
    if isinstance(format_, dict) and isinstance(kind := format_.get("type"), str) and kind != "text":
        raise ValueError(f"found type {kind[:40]!r}, but {NO_CONSTRAINT}; give 'text'")
    return format_


class TextPartBody(Body):
    """A part of a message's content."""

    type: Literal["text"]
    """Kind of the part."""
    text: str
    """Its text."""


class RefusalPartBody(Body):
    """A part of an assistant's turn that OpenAI's own models write."""

    type: Literal["refusal"]
    """Kind of the part."""
    refusal: str
    """Its text, which is taken as any other."""


Parts = Annotated[list[TextPartBody | RefusalPartBody], Field(fail_fast=True)]


class FunctionBody(Body):
    """A call's function."""

    name: str
    """Name of the function."""
    arguments: str = "{}"
    """A JSON object as text."""


class CallBody(Body):
    """A call that the assistant made."""

    id: str = ""
    """Id that the tool's turn answers by."""
    type: Literal["function"] = "function"
    """Kind of the call."""
    function: FunctionBody
    """Function that was called."""
    index: int | None = None
    """Position among the turn's calls; not looked at."""


class MessageBody(Body):
    """One turn. Fields of answers beside these come back as null and say nothing."""

    role: str
    """Any role that the model's template takes; `developer` is taken as `system`."""
    content: Annotated[str | Parts | None, BeforeValidator(_plain_text)] = None
    """Text of the turn, or parts with text."""
    name: str | None = None
    """Name of the participant or the tool."""
    tool_calls: Annotated[list[CallBody], Field(fail_fast=True)] | None = None
    """Calls that the assistant made in this turn."""
    tool_call_id: str | None = None
    """In a tool's turn: id of the call that it answers."""
    reasoning_content: str | None = None
    """Thoughts of the assistant before it answered."""
    reasoning: str | None = None
    """Another name of reasoning_content."""
    refusal: str | None = None
    """Not looked at."""
    annotations: list[Any] | None = None
    """Not looked at."""
    audio: None = None
    """Not looked at."""
    function_call: None = None
    """Not looked at."""


class AdapterBody(Body):
    """A part of a mix."""

    reference: str
    """`name[:tag][@sha256:…]`."""
    weight: float = 1.0
    """Factor on the adapter's own scaling."""


class StreamOptionsBody(Body):
    """Contents of a stream."""

    include_usage: bool | None = None
    """Send the numbers of tokens in a last event."""
    include_obfuscation: bool | None = None
    """Ignored."""
    continuous_usage_stats: Literal[False] | None = None
    """Numbers of tokens come once, at the end."""


class ResponseFormatBody(Body):
    """The form of an answer."""

    type: Literal["text"]
    """Plain text: tokens are not constrained."""


class GenerationBody(Body):
    """Parameters of chats and completions alike."""

    model: str
    adapters: Annotated[list[AdapterBody], Field(fail_fast=True, min_length=1)] | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = None
    seed: int | None = Field(default=None, ge=-_INT64, lt=2 * _INT64)
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    priority: int | None = None
    request_id: str | None = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[MessageBody], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: Annotated[Literal["auto", "none"] | None, BeforeValidator(_unforced)] = None
    response_format: Annotated[ResponseFormatBody | None, BeforeValidator(_unconstrained)] = None
    reasoning_effort: str | None = None
    modalities: list[Literal["text"]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = Field(default=None, max_length=256)
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    # By hand in `prompts_of`: a union of lists would look at each of a million ids four times.
    prompt: Any = Field(
        json_schema_extra={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "integer"}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            ]
        }
    )
    logprobs: int | None = Field(default=None, ge=0)
    echo: bool | None = None


class LoadAdapterBody(Body):
    """POST /v1/load_lora_adapter."""

    lora_name: str
    """The reference that requests will name."""
    lora_path: str
    """A reference, or `hf://ORG/NAME[@REVISION][/FOLDER]`; never a path."""
    load_inplace: bool = False
    """Let lora_name stand for another version than now."""
    base_model_name: str | None = None
    """The base model of an import, where its config names another."""


class UnloadAdapterBody(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: str
    """The reference to unload."""
    lora_int_id: int | None = None
    """Known to vLLM; not looked at."""


def parsed(kind: type[B], values: dict[str, Any]) -> B:
    """The body as its model; raises ApiError for the first thing that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
    param = _param(error["loc"])
    if error["type"] == "missing":
        raise wrong_param(param, "must be given")
    if error["type"] == "extra_forbidden":
        raise wrong_param(param, "there is no such field", "UNKNOWN_PARAMETER")
    problem = error["msg"].removeprefix("Value error, ")
    shown = "" if error["type"] == "value_error" else f"found {_shown(error['input'])}: "
    raise wrong_param(param, f"{shown}{problem[:1].lower()}{problem[1:]}")


def prompts_of(prompt: object) -> list[str | list[int]]:
    """Every prompt of a completion; raises ApiError."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise wrong_param("prompt", f"found {_shown(prompt)}, expected text, token ids, or a list of either")
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise wrong_param("prompt", f"found {len(prompt)} prompts, at most {MAX_PROMPTS} are taken at once")
    for index, item in enumerate(prompt):
        is_tokens = isinstance(item, list) and item and set(map(type, item)) == {int}
        if not (is_tokens or isinstance(item, str)):
            raise wrong_param(f"prompt[{index}]", f"found {_shown(item)}, expected text or token ids")
    return prompt


def _param(loc: tuple[int | str, ...]) -> str:
    """The place as one writes it, without the branches of unions, which pydantic names after their types."""
    param = ""
    for part in loc:
        if isinstance(part, int):
            param += f"[{part}]"
        elif not part.isidentifier() or part in ("str", "int", "float", "bool", "none") or part[0].isupper():
            break
        else:
            param += f".{part}" if param else part
    return param


def _shown(value: object) -> str:
    if isinstance(value, str):
        cut = value if len(value) <= MAX_SHOWN_CHARS else value[: MAX_SHOWN_CHARS - 1] + "…"
        return repr(cut)
    if isinstance(value, bool | int | float | None):
        return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)[:40]
    return "an object" if isinstance(value, dict) else "an empty list" if value == [] else "a list"
