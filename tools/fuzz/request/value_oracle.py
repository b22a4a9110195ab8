"""Values of a request that was taken, each within the range that the proto's comments and docs give it."""

import math
import re
from collections.abc import Sequence

from hotslot.contract.generation import ChatPrompt, GenerationRequest
from tools.fuzz.request.models import LIMITS
from tools.fuzz.target import OracleError, require
from worker_service.adapters.policy import Selection
from worker_service.engine.messages import NO_LOGPROBS

_NAME = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
_REFERENCE = re.compile(rf"{_NAME}(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?")


def check_values(request: GenerationRequest, selections: Sequence[Selection]) -> None:
    """Raise OracleError for a value that the model cannot be given."""
    sampling, stop, logprobs = request.sampling, request.stop, request.logprobs or NO_LOGPROBS
    bounds = (stop.max_tokens or 0, stop.default_max_tokens)
    numbers = {
        "temperature": (sampling.temperature, 0, 100),
        "top_k": (sampling.top_k, 0, 2**31 - 1),
        "top_p": (sampling.top_p, 5e-324, 1),
        "min_p": (sampling.min_p, 0, 1),
        "repetition_penalty": (sampling.repetition_penalty, 0.01, 100),
        "presence_penalty": (sampling.presence_penalty, -2, 2),
        "frequency_penalty": (sampling.frequency_penalty, -2, 2),
        "num_alternatives": (logprobs.num_alternatives, 0, 20),
        "max_tokens": (bounds[0], 0, LIMITS.max_sequence_tokens),
        "min_tokens": (stop.min_tokens, 0, bounds[0] or LIMITS.max_sequence_tokens),
        "default_max_tokens": (bounds[1], 0, 2**31 - 1),
        "num_choices": (request.num_choices, 1, LIMITS.max_choices),
        "priority": (request.priority, -1000, 1000),
        "biased tokens": (len(sampling.logit_bias), 0, 1024),
        "stop strings": (len(stop.strings), 0, 16),
        "stop tokens": (len(stop.token_ids), 0, 256),
        "adapters": (len(selections), 0, LIMITS.max_adapters),
        "request id": (len(request.request_id), 0, 128),
        "min_revision": (request.min_revision, 0, 2**63 - 1),
        "seed": (sampling.seed or 0, 0, 2**64 - 1),
    }
    numbers |= {f"weight {index}": (s.weight, -100, 100) for index, s in enumerate(selections)}
    numbers |= {f"stop string {index}": (len(text), 1, 256) for index, text in enumerate(stop.strings)}
    numbers |= {f"bias of {token_id}": (bias, -100, 100) for token_id, bias in sampling.logit_bias.items()}
    for name, (value, least, most) in numbers.items():
        if not (math.isfinite(value) and least <= value <= most):
            raise OracleError(f"{name} is {value}")
    token_ids = [*stop.token_ids, *sampling.logit_bias]
    require(all(0 <= token_id < LIMITS.vocab_size for token_id in token_ids), "a token that the model does not know")
    require(request.request_id.isprintable(), "a request id that no log can show")
    require(not (request.base_only and selections), "the base alone, with adapters")
    references = [str(selection.reference) for selection in selections]
    require(all(map(_REFERENCE.fullmatch, references)), "a reference that is none")
    require(len(set(references)) == len(references) == len(request.adapters), "an adapter twice, or none of it")
    if logprobs.num_alternatives:
        require(logprobs.enabled or logprobs.prompt, "alternatives of nothing")
    _check_prompt(request.prompt)


def _check_prompt(prompt: object) -> None:
    match prompt:
        case str(text):
            require(bool(text), "an empty text")
        case tuple(token_ids):
            require(bool(token_ids), "no tokens")
        case ChatPrompt() as chat:
            require(bool(chat.messages), "a chat without messages")
            require(len(chat.tools) <= 128, "more than 128 tools")
            for message in chat.messages:
                names = (message.role, message.name, message.tool_call_id)
                require(len(message.role) > 0 and max(map(len, names)) <= 256, "a role or a name out of bounds")
                require(not (message.content and message.parts), "content and parts")
                require(None not in message.parts, "a part of an unknown kind")
                for call in message.tool_calls:
                    require(0 < len(call.name) <= 256 and len(call.id) <= 256, "a call's name or id out of bounds")
