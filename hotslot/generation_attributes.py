"""Spans of generations as OpenTelemetry's conventions for generative AI have them.

https://github.com/open-telemetry/semantic-conventions-genai. Neither prompts nor answers are recorded.
"""

from dataclasses import dataclass, field, fields

from hotslot.contract.generation import (
    ChatPrompt,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Sampling,
    ServedAdapter,
    Started,
)
from hotslot.tracing import Attributes, Value

CHAT, COMPLETION = "chat", "text_completion"
"""Operations."""
PROVIDER = "hotslot"


def operation_of(request: GenerationRequest) -> str:
    """Operation of a request: a chat, also as its messages alone, or the completion of a text or of tokens."""
    prompt = request.prompt
    is_chat = isinstance(prompt, ChatPrompt) or not (
        prompt is None or isinstance(prompt, str) or all(isinstance(each, int) for each in prompt)
    )
    return CHAT if is_chat else COMPLETION


def span_name(operation: str, model: str) -> str:
    """Name of the span of a generation."""
    return f"{operation} {model}" if model else operation


def model_of(request: GenerationRequest, base_model: str) -> str:
    """Name of what a request asks for: its adapters' references, else the base model's name where it is known."""
    return ",".join(selection.reference for selection in request.adapters) or base_model


def request_attributes(request: GenerationRequest, model: str) -> Attributes:
    """Attributes that are known when it begins."""
    stop = request.stop
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": operation_of(request),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model or None,
        "gen_ai.request.max_tokens": stop.max_tokens or None,
        "gen_ai.request.stop_sequences": tuple(stop.strings) or None,
        "gen_ai.request.choice.count": request.num_choices if request.num_choices != 1 else None,
    }
    for each in fields(Sampling):
        # The conventions have the parameters under the names that they have here.
        value = getattr(request.sampling, each.name)
        if isinstance(value, int | float) and value != each.default:
            found[f"gen_ai.request.{each.name}"] = value
    return {name: value for name, value in found.items() if value is not None}


def adapter_attributes(adapters: tuple[ServedAdapter, ...]) -> Attributes:
    """Versions that serve a request, with their weights, in its order."""
    if not adapters:
        return {}
    return {
        "gen_ai.response.model": ",".join(f"{_name_of(adapter)}@{adapter.digest}" for adapter in adapters),
        "hotslot.adapter.reference": tuple(adapter.reference for adapter in adapters),
        "hotslot.adapter.digest": tuple(adapter.digest for adapter in adapters),
        "hotslot.adapter.weight": tuple(adapter.weight for adapter in adapters),
    }


@dataclass(slots=True)
class AnswerAttributes:
    """Attributes of an answer, collected from its events."""

    started: Started | None = None
    finished: dict[int, Finished] = field(default_factory=dict)

    def add(self, event: GenerationEvent) -> None:
        """Take an event."""
        if isinstance(event, Finished):
            self.finished[event.choice] = event
        elif isinstance(event, Started):
            self.started = event

    def attributes(self) -> Attributes:
        """Attributes as far as they are known."""
        started, ends = self.started, [end for _, end in sorted(self.finished.items())]
        if started is None:
            return {}
        found: dict[str, Value] = {
            "gen_ai.response.id": started.request_id,
            "gen_ai.usage.input_tokens": started.num_prompt_tokens,
            "hotslot.worker.id": started.worker_id,
            **adapter_attributes(started.adapters),
        }
        if ends:
            found["gen_ai.response.finish_reasons"] = tuple(end.reason.value for end in ends)
            found["gen_ai.usage.output_tokens"] = sum(end.usage.completion_tokens for end in ends)
            found["gen_ai.usage.cache_read.input_tokens"] = ends[0].usage.cached_tokens
        return found


def _name_of(adapter: ServedAdapter) -> str:
    return adapter.reference.partition("@")[0].partition(":")[0]
