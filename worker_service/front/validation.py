"""Checks a request's fields, all of them, before anything is spent on it. Pure.

Work is bounded whatever the request holds: of lists that are too long only the beginning is looked at.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hotslot.contract.generation import (
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Logprobs,
)
from hotslot.errors import (
    EmptyPromptError,
    FieldViolation,
    InvalidReferenceError,
    InvalidRequestError,
)
from hotslot.references import parse_reference
from worker_service.adapters.policy import Selection
from worker_service.front.prompts import PlainPrompt

MAX_TEMPERATURE = 100.0
MAX_PENALTY = 2.0
# A factor on logits: far beyond this they leave the range of fp32.
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
MAX_BIAS = 100.0
MAX_BIASED_TOKENS = 1_024
MAX_WEIGHT = 100.0
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_ALTERNATIVES = 20
MAX_PROMPT_LOGPROBS = 150_000
"""Tokens of a prompt and their alternatives together: what a message of 4 MiB, gRPC's default, holds."""
MAX_REQUEST_ID_CHARS = 128
MAX_PRIORITY = 1_000
MAX_NAME_CHARS = 256
"""Most characters of roles, names and ids in chats. Their meaning is the template's to say."""
MAX_TOOLS = 128
MAX_JSON_CHARS = 256 * 1024
"""Most characters of a tool, of a call's arguments and of the template's."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of a request that depend on the model and the worker."""

    vocab_size: int
    """Tokens that the model can read."""
    max_sequence_tokens: int
    max_choices: int
    max_adapters: int


def check(request: GenerationRequest, limits: RequestLimits) -> tuple[Selection, ...]:
    """Check everything; returns the adapters with their references parsed.

    Raises InvalidRequestError with every field at fault (InvalidReferenceError when a reference is all that is wrong,
    EmptyPromptError when the prompt is).
    """
    problems: list[FieldViolation] = []
    selections, reference_errors = _parse_adapters(request.adapters[: limits.max_adapters], problems)
    problems += _adapter_problems(request, limits)
    problems += _sampling_problems(request, limits)
    if request.logprobs is not None:
        problems += _logprobs_problems(request.logprobs)
    problems += _stop_problems(request, limits)
    problems += _other_problems(request, limits)
    prompt = request.prompt
    is_empty = not (prompt.messages if isinstance(prompt, ChatPrompt) else prompt)
    if not is_empty:
        problems += _prompt_problems(prompt, limits)
    if len(reference_errors) == 1 and not problems and not is_empty:
        raise reference_errors[0]
    if is_empty and not problems and not reference_errors:
        raise EmptyPromptError()
    for error in reference_errors:
        problems.append(FieldViolation("adapters.reference", error.message))
    if is_empty:
        problems.append(FieldViolation("prompt", "must not be empty"))
    if problems:
        raise InvalidRequestError(problems)
    return selections


def check_prompt_logprobs(request: GenerationRequest, num_prompt_tokens: int) -> None:
    """Bound what the first message holds, once the prompt's length is known. Raises InvalidRequestError."""
    logprobs = request.logprobs
    if logprobs is None or not logprobs.prompt:
        return
    if num_prompt_tokens * (1 + logprobs.num_alternatives) > MAX_PROMPT_LOGPROBS:
        most = MAX_PROMPT_LOGPROBS // num_prompt_tokens - 1
        expected = f"at most {most} for a prompt of {num_prompt_tokens} tokens" if most >= 0 else "a shorter prompt"
        raise InvalidRequestError([_number("logprobs.num_alternatives", logprobs.num_alternatives, expected)])


def check_prompt_tokens(
    prompt: PlainPrompt, token_ids: Sequence[int], limits: RequestLimits, text_of: Callable[[int], str]
) -> None:
    """Refuse tokens that the model has no embedding for: a tokenizer may know more than the model that it came with.

    Every prompt comes through here, since one such token makes its step fail. Raises InvalidRequestError.
    """
    if min(token_ids) >= 0 and max(token_ids) < limits.vocab_size:
        return
    place, token_id = next((i, t) for i, t in enumerate(token_ids) if not 0 <= t < limits.vocab_size)
    field = {str: "text", ChatPrompt: "chat.messages"}.get(type(prompt), f"tokens.token_ids[{place}]")
    raise InvalidRequestError(
        [
            FieldViolation(
                field,
                f"token {token_id} ({text_of(token_id)!r}), at position {place} of the prompt, is beyond the "
                f"{limits.vocab_size} that the model has embeddings for; leave it out",
            )
        ]
    )


def check_mix(adapters: Sequence[AdapterSelection], max_adapters: int) -> tuple[Selection, ...]:
    """Check a mix of adapters that is not part of a request. Raises as `check`."""
    problems: list[FieldViolation] = []
    selections, reference_errors = _parse_adapters(adapters[:max_adapters], problems)
    problems += _mix_problems(adapters, max_adapters)
    if len(reference_errors) == 1 and not problems:
        raise reference_errors[0]
    problems += [FieldViolation("adapters.reference", error.message) for error in reference_errors]
    if problems:
        raise InvalidRequestError(problems)
    return selections


def _parse_adapters(
    adapters: Sequence[AdapterSelection], problems: list[FieldViolation]
) -> tuple[tuple[Selection, ...], list[InvalidReferenceError]]:
    selections: list[Selection] = []
    errors: list[InvalidReferenceError] = []
    for index, adapter in enumerate(adapters):
        try:
            reference = parse_reference(adapter.reference)
        except InvalidReferenceError as exc:
            errors.append(exc)
            continue
        if any(reference == other.reference for other in selections):
            problems.append(FieldViolation(f"adapters[{index}].reference", f"{str(reference)!r} stands twice"))
        selections.append(Selection(reference, adapter.weight))
    return tuple(selections), errors


def _mix_problems(adapters: Sequence[AdapterSelection], max_adapters: int) -> Iterator[FieldViolation]:
    if len(adapters) > max_adapters:
        yield FieldViolation("adapters", f"found {len(adapters)}, at most {max_adapters} fit this worker's slots")
    for index, adapter in enumerate(adapters[:max_adapters]):
        if not abs(adapter.weight) <= MAX_WEIGHT:
            yield _number(f"adapters[{index}].weight", adapter.weight, f"between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")


def _adapter_problems(request: GenerationRequest, limits: RequestLimits) -> Iterator[FieldViolation]:
    yield from _mix_problems(request.adapters, limits.max_adapters)
    if request.base_only and request.adapters:
        yield FieldViolation("base_only", "excludes adapters; give one or the other")


def _sampling_problems(request: GenerationRequest, limits: RequestLimits) -> Iterator[FieldViolation]:
    sampling = request.sampling
    # Written so that NaN, for which every comparison is false, is refused.
    if not 0 <= sampling.temperature <= MAX_TEMPERATURE:
        yield _number("sampling.temperature", sampling.temperature, f"between 0 and {MAX_TEMPERATURE:g}")
    if sampling.top_k < 0:
        yield _number("sampling.top_k", sampling.top_k, "0 (no limit) or more")
    if not 0 < sampling.top_p <= 1:
        yield _number("sampling.top_p", sampling.top_p, "above 0 and at most 1")
    if not 0 <= sampling.min_p <= 1:
        yield _number("sampling.min_p", sampling.min_p, "between 0 and 1")
    if not MIN_REPETITION_PENALTY <= sampling.repetition_penalty <= MAX_REPETITION_PENALTY:
        expected = f"between {MIN_REPETITION_PENALTY:g} and {MAX_REPETITION_PENALTY:g}"
        yield _number("sampling.repetition_penalty", sampling.repetition_penalty, expected)
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        if not abs(value) <= MAX_PENALTY:
            yield _number(f"sampling.{name}", value, f"between -{MAX_PENALTY:g} and {MAX_PENALTY:g}")
    if len(sampling.logit_bias) > MAX_BIASED_TOKENS:
        yield _number("sampling.logit_bias", len(sampling.logit_bias), f"at most {MAX_BIASED_TOKENS} tokens")
        return
    for token_id, bias in sampling.logit_bias.items():
        if not 0 <= token_id < limits.vocab_size:
            yield _token("sampling.logit_bias", token_id, limits)
        if not abs(bias) <= MAX_BIAS:
            yield _number(f"sampling.logit_bias[{token_id}]", bias, f"between -{MAX_BIAS:g} and {MAX_BIAS:g}")


def _logprobs_problems(logprobs: Logprobs) -> Iterator[FieldViolation]:
    if not 0 <= logprobs.num_alternatives <= MAX_ALTERNATIVES:
        yield _number("logprobs.num_alternatives", logprobs.num_alternatives, f"between 0 and {MAX_ALTERNATIVES}")
    elif logprobs.num_alternatives and not (logprobs.enabled or logprobs.prompt):
        yield FieldViolation("logprobs.num_alternatives", "needs logprobs.enabled or logprobs.prompt")


def _stop_problems(request: GenerationRequest, limits: RequestLimits) -> Iterator[FieldViolation]:
    stop = request.stop
    max_tokens = stop.max_tokens or 0
    if not 0 <= max_tokens <= limits.max_sequence_tokens:
        yield _number("stop.max_tokens", max_tokens, f"between 0 and {limits.max_sequence_tokens}")
    if stop.default_max_tokens < 0:
        yield _number("stop.default_max_tokens", stop.default_max_tokens, "0 (as many as fit) or more")
    most = max_tokens if max_tokens > 0 else limits.max_sequence_tokens
    if not 0 <= stop.min_tokens <= most:
        yield _number("stop.min_tokens", stop.min_tokens, f"between 0 and {most}")
    if len(stop.strings) > MAX_STOP_STRINGS:
        yield _number("stop.stop_strings", len(stop.strings), f"at most {MAX_STOP_STRINGS}")
    for index, text in enumerate(stop.strings[:MAX_STOP_STRINGS]):
        if not 1 <= len(text) <= MAX_STOP_STRING_CHARS:
            yield _number(f"stop.stop_strings[{index}]", f"{len(text)} characters", f"1 to {MAX_STOP_STRING_CHARS}")
    if len(stop.token_ids) > MAX_STOP_TOKEN_IDS:
        yield _number("stop.stop_token_ids", len(stop.token_ids), f"at most {MAX_STOP_TOKEN_IDS}")
    for index, token_id in enumerate(stop.token_ids[:MAX_STOP_TOKEN_IDS]):
        if not 0 <= token_id < limits.vocab_size:
            yield _token(f"stop.stop_token_ids[{index}]", token_id, limits)


def _other_problems(request: GenerationRequest, limits: RequestLimits) -> Iterator[FieldViolation]:
    if not 1 <= request.num_choices <= limits.max_choices:
        yield _number("num_choices", request.num_choices, f"between 0 (one) and {limits.max_choices}")
    if abs(request.priority) > MAX_PRIORITY:
        yield _number("priority", request.priority, f"between -{MAX_PRIORITY} and {MAX_PRIORITY}")
    if request.min_revision < 0:
        yield _number("min_revision", request.min_revision, "0 or more")
    if len(request.request_id) > MAX_REQUEST_ID_CHARS or not request.request_id.isprintable():
        yield FieldViolation("request_id", f"expected at most {MAX_REQUEST_ID_CHARS} printable characters")


def _prompt_problems(prompt: object, limits: RequestLimits) -> Iterator[FieldViolation]:
    # One of perhaps thousands tells it.
    if isinstance(prompt, ChatPrompt):
        yield from itertools.islice(chat_problems(prompt), 1)
    elif isinstance(prompt, tuple):
        # One that is too long has an error of its own.
        for index, token_id in enumerate(prompt[: limits.max_sequence_tokens]):
            if not 0 <= token_id < limits.vocab_size:
                yield _token(f"tokens.token_ids[{index}]", token_id, limits)
                return


def chat_problems(prompt: ChatPrompt) -> Iterator[FieldViolation]:
    """Fields of a chat that are wrong, whatever its template says."""
    for index, message in enumerate(prompt.messages):
        yield from _message_problems(message, f"chat.messages[{index}]")
    if len(prompt.tools) > MAX_TOOLS:
        yield _number("chat.tools_json", len(prompt.tools), f"at most {MAX_TOOLS}")
    documents = [(f"chat.tools_json[{index}]", text) for index, text in enumerate(prompt.tools)]
    for field, text in (*documents, ("chat.template_arguments_json", prompt.template_arguments)):
        if len(text) > MAX_JSON_CHARS:
            yield _number(field, f"{len(text)} characters", f"at most {MAX_JSON_CHARS}")


def _message_problems(message: ChatMessage, field: str) -> Iterator[FieldViolation]:
    if not 1 <= len(message.role) <= MAX_NAME_CHARS:
        yield _number(f"{field}.role", f"{len(message.role)} characters", f"1 to {MAX_NAME_CHARS}")
    for name in ("name", "tool_call_id"):
        if len(getattr(message, name)) > MAX_NAME_CHARS:
            yield _number(f"{field}.{name}", f"{len(getattr(message, name))} characters", f"at most {MAX_NAME_CHARS}")
    if message.content and message.parts:
        yield FieldViolation(f"{field}.content", "excludes parts; give one or the other")
    if None in message.parts:
        place = f"{field}.parts[{list(message.parts).index(None)}]"
        yield FieldViolation(place, "is of no kind that this worker knows; there is text")
    for index, call in enumerate(message.tool_calls):
        place = f"{field}.tool_calls[{index}]"
        if not 1 <= len(call.name) <= MAX_NAME_CHARS:
            yield _number(f"{place}.name", f"{len(call.name)} characters", f"1 to {MAX_NAME_CHARS}")
        if len(call.id) > MAX_NAME_CHARS:
            yield _number(f"{place}.id", f"{len(call.id)} characters", f"at most {MAX_NAME_CHARS}")
        if len(call.arguments) > MAX_JSON_CHARS:
            found = f"{len(call.arguments)} characters"
            yield _number(f"{place}.arguments_json", found, f"at most {MAX_JSON_CHARS}")


def _number(field: str, found: object, expected: str) -> FieldViolation:
    shown = f"{found:g}" if isinstance(found, float) and math.isfinite(found) else str(found)
    return FieldViolation(field, f"found {shown}, expected {expected}")


def _token(field: str, token_id: int, limits: RequestLimits) -> FieldViolation:
    return FieldViolation(field, f"found token {token_id}, the vocabulary has {limits.vocab_size}")
