"""Values of a request that was taken, each within the range that the proto's comments and docs give it."""

import math
import re

from tools.fuzz.request.models import LIMITS
from tools.fuzz.target import OracleError, require
from worker_service.front.requests import ChatPrompt, CheckedRequest, TextPrompt, TokenPrompt

_NAME = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
_REFERENCE = re.compile(rf"{_NAME}(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?")


def check_values(checked: CheckedRequest) -> None:
    """Raise OracleError for a value that the model cannot be given."""
    request, sampling = checked.request, checked.request.sampling
    numbers = {
        "temperature": (sampling.temperature, 0, 100),
        "top_k": (sampling.top_k, 0, 2**31 - 1),
        "top_p": (sampling.top_p, 5e-324, 1),
        "min_p": (sampling.min_p, 0, 1),
        "repetition_penalty": (sampling.repetition_penalty, 0.01, 100),
        "presence_penalty": (sampling.presence_penalty, -2, 2),
        "frequency_penalty": (sampling.frequency_penalty, -2, 2),
        "num_alternatives": (sampling.num_alternatives, 0, 20),
        "max_tokens": (request.max_tokens, 0, LIMITS.max_sequence_tokens),
        "min_tokens": (request.min_tokens, 0, request.max_tokens or LIMITS.max_sequence_tokens),
        "default_max_tokens": (request.default_max_tokens, 0, 2**31 - 1),
        "num_choices": (request.num_choices, 1, LIMITS.max_choices),
        "priority": (request.priority, -1000, 1000),
        "biased tokens": (len(sampling.logit_bias), 0, 1024),
        "stop strings": (len(request.stop_strings), 0, 16),
        "stop tokens": (len(request.stop_token_ids), 0, 256),
        "adapters": (len(checked.selections), 0, LIMITS.max_adapters),
        "request id": (len(request.request_id), 0, 128),
        "seed": (request.seed or 0, 0, 2**64 - 1),
    }
    numbers |= {f"weight {index}": (s.weight, -100, 100) for index, s in enumerate(checked.selections)}
    numbers |= {f"stop string {index}": (len(text), 1, 256) for index, text in enumerate(request.stop_strings)}
    numbers |= {f"bias of {token_id}": (bias, -100, 100) for token_id, bias in sampling.logit_bias}
    for name, (value, least, most) in numbers.items():
        if not (math.isfinite(value) and least <= value <= most):
            raise OracleError(f"{name} is {value}")
    token_ids = [*request.stop_token_ids, *(token_id for token_id, _ in sampling.logit_bias)]
    require(all(0 <= token_id < LIMITS.vocab_size for token_id in token_ids), "a token that the model does not know")
    require(request.request_id.isprintable(), "a request id that no log can show")
    require(not (request.base_only and checked.selections), "the base alone, with adapters")
    references = [str(selection.reference) for selection in checked.selections]
    require(all(map(_REFERENCE.fullmatch, references)), "a reference that is none")
    require(len(set(references)) == len(references) == len(request.adapters), "an adapter twice, or none of it")
    if sampling.num_alternatives:
        require(sampling.logprobs or request.prompt_logprobs, "alternatives of nothing")
    require(checked.prompt is request.prompt, "another prompt than the request's")
    _check_prompt(checked)


def _check_prompt(checked: CheckedRequest) -> None:
    match checked.prompt:
        case TextPrompt(text):
            require(bool(text), "an empty text")
        case TokenPrompt(token_ids):
            require(bool(token_ids), "no tokens")
        case ChatPrompt() as chat:
            require(bool(chat.messages), "a chat without messages")
            require(len(chat.tools_json) <= 128, "more than 128 tools")
            for message in chat.messages:
                names = (message.role, message.name, message.tool_call_id)
                require(len(message.role) > 0 and max(map(len, names)) <= 256, "a role or a name out of bounds")
                require(not (message.content and message.parts), "content and parts")
                require(None not in message.parts, "a part of an unknown kind")
                for call in message.tool_calls:
                    require(0 < len(call.name) <= 256 and len(call.call_id) <= 256, "a call's name or id out of bounds")
