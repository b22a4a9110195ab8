"""A generation as the caller asked for it, and what it answers, without proto types."""

from dataclasses import dataclass, field

from hotslot.ids import Digest, WorkerId
from hotslot.references import Reference
from worker_service.adapters.policy import Selection
from worker_service.engine.messages import FinishReason, SampledToken, SamplingOptions


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Tokenised as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the assistant made."""

    call_id: str
    name: str
    arguments_json: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn."""

    role: str
    content: str
    parts: tuple[str | None, ...] = ()
    """Texts, instead of `content`; None for a part of a kind that this worker does not know."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning_content: str = ""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Rendered with the model's chat template."""

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    """Excludes a generation prompt, whatever the field above says."""
    tools_json: tuple[str, ...] = ()
    template_arguments_json: str = ""
    allow_special_tokens: bool = False
    template: str = ""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Taken as it is."""

    token_ids: tuple[int, ...]


Prompt = TextPrompt | ChatPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """A reference as the caller wrote it, with its weight."""

    reference: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Unchecked; `validation.check` says what is wrong with it."""

    prompt: Prompt | None
    adapters: tuple[NamedAdapter, ...] = ()
    base_only: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """Its seed is not used."""
    seed: int | None = None
    max_tokens: int = 0
    """0 means the default."""
    default_max_tokens: int = 0
    """0 means as many as fit."""
    min_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    prompt_logprobs: bool = False
    request_id: str = ""
    priority: int = 0
    num_choices: int = 1
    skip_special_tokens: bool = True

    @property
    def most_tokens(self) -> int:
        """Tokens of an answer at most; 0 means as many as fit. The default gives way to min_tokens."""
        if self.max_tokens or not self.default_max_tokens:
            return self.max_tokens
        return max(self.default_max_tokens, self.min_tokens)


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that passed every check, with its adapters parsed."""

    request: GenerationRequest
    prompt: Prompt
    selections: tuple[Selection, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """One adapter that serves a request."""

    reference: Reference
    digest: Digest
    weight: float


@dataclass(frozen=True, slots=True)
class Started:
    """What serves the request; goes out together with the first token."""

    request_id: str
    worker_id: WorkerId
    base_model_digest: Digest
    adapters: tuple[Served, ...]
    num_prompt_tokens: int
    prompt_logprobs: tuple[SampledToken, ...] = ()
    """One for each token of the prompt but the first, if asked for."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """More of one choice; the text may lag behind the tokens."""

    choice: int
    text: str
    tokens: tuple[SampledToken, ...]


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds from acceptance."""

    queue_s: float
    adapter_load_s: float
    time_to_first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one choice."""

    choice: int
    reason: FinishReason
    stop_string: str | None
    stop_token_id: int | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were found in the prefix cache."""
    timings: Timings


GenerationEvent = Started | Chunk | Finished
