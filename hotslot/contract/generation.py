"""Generations: a request for one, and the events that stream back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

DEFAULT_MAX_TOKENS = 512
"""Bound of an answer whose request sets none; the worker's limits may make it shorter."""
MIN_TEMPERATURE = 1e-5
"""Below this logits divided by it leave the range of fp32; what it draws is the most likely token anyway."""


class JsonText(str):
    """A JSON document in the place of the value that it stands for, as it arrived."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text that is one part of a message's content."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the assistant made."""

    name: str
    arguments: Mapping[str, object] | JsonText = field(default_factory=dict)
    """Values that JSON can express; an empty text means none."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """Any that the model's template takes: mostly `system`, `user`, `assistant` or `tool`."""
    content: str | Sequence[TextPart] = ""
    tool_calls: Sequence[ToolCall] = ()
    """Calls of the assistant in this turn."""
    tool_call_id: str = ""
    """In a tool's turn: the id of the call that it answers."""
    name: str = ""
    """In a tool's turn: the tool's name; else the participant's."""
    reasoning_content: str = ""
    """Thoughts of the assistant before it answered."""
    parts: Sequence[TextPart | None] = ()
    """The content where it arrived in parts; None for one of a kind that this version does not know."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation with all that the model's chat template takes beside the messages.

    `add_generation_prompt` opens the assistant's turn; None means yes, unless the last message is continued.
    """

    messages: Sequence[ChatMessage]
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    """Leave the last message open, so that the answer goes on with it."""
    tools: Sequence[Mapping[str, object] | JsonText] = ()
    """Functions that the assistant may call: a JSON object for each, in the form that the template takes."""
    template_arguments: Mapping[str, object] | JsonText = field(default_factory=dict)
    """Variables of the template; values that JSON can express."""
    allow_special_tokens: bool = False
    """Let special tokens that are written out in messages, tools and arguments be more than text."""
    template: str = ""
    """Name of one of the model's templates; empty means the one for tools where there are any, else the default."""


@dataclass(frozen=True, slots=True)
class AdapterSelection:
    """An adapter by reference, with a factor on its own scaling."""

    reference: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling of the next token; the defaults are greedy."""

    temperature: float = 0.0
    """0 to 100; below 0.00001 it is greedy."""
    top_k: int = 0
    """0 means no limit."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    """0.01 to 100."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def counts_tokens(self) -> bool:
        """True if logits depend on the tokens before them by a penalty."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def is_greedy(self) -> bool:
        """Tell if the most likely token is taken."""
        return self.temperature < MIN_TEMPERATURE


@dataclass(frozen=True, slots=True)
class Stop:
    """Conditions for the end of a generation, besides the model's own end-of-sequence tokens."""

    max_tokens: int | None = 0
    """0 means at most DEFAULT_MAX_TOKENS, and fewer where they do not fit; None means as many as fit."""
    min_tokens: int = 0
    strings: Sequence[str] = ()
    """A special token counts as the text that it is written as."""
    token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    """Bound where `max_tokens` is 0; 0 means as many as fit. Gives way to `min_tokens`."""

    @property
    def most_tokens(self) -> int:
        """Tokens of an answer at most; 0 means as many as fit."""
        if self.max_tokens is None or self.max_tokens or not self.default_max_tokens:
            return self.max_tokens or 0
        return max(self.default_max_tokens, self.min_tokens)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities that come back: of generated tokens, and of the prompt's."""

    num_alternatives: int = 0
    prompt: bool = False
    enabled: bool = True
    """True if the log-probabilities of generated tokens come back."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request to generate.

    `prompt` is text (tokenised as it is, special tokens included), a chat or its messages alone (rendered with the
    model's template) or token ids; only a worker sees None,
    which it refuses. No adapters means the worker's defaults; `base_only` means the base model alone.
    """

    prompt: str | ChatPrompt | Sequence[ChatMessage] | Sequence[int] | None
    adapters: Sequence[AdapterSelection] = ()
    base_only: bool = False
    sampling: Sampling = Sampling()
    stop: Stop = Stop()
    logprobs: Logprobs | None = None
    request_id: str = ""
    priority: int = 0
    num_choices: int = 1
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    min_revision: int = 0
    """Revision of the tenant's catalog that references are read at, or a later one: what a write of another client
    returned. A client adds that of its own writes by itself."""


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter with the digest that its reference stood for when the request was accepted."""

    reference: str
    digest: str
    weight: float


class TokenAlternative(NamedTuple):
    """A token that might have been chosen."""

    token_id: int
    logprob: float
    text: str = ""
    """As in Token, and so is the next."""
    text_bytes: bytes = b""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability, with the most likely alternatives."""

    token_id: int
    logprob: float
    alternatives: tuple[TokenAlternative, ...] = ()
    text: str = ""
    """As in Token, and so is the next; empty from workers that do not tell it."""
    text_bytes: bytes = b""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: the worker and the adapters that serve the request."""

    request_id: str
    worker_id: str
    base_model_digest: str
    adapters: tuple[ServedAdapter, ...]
    """Empty: the base model alone."""
    num_prompt_tokens: int
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text and tokens as they come."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


class FinishReason(StrEnum):
    """Reason for the end of a choice."""

    UNSPECIFIED = "unspecified"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Time of each stage of a request, counted from acceptance."""

    queue_s: float
    adapter_load_s: float
    time_to_first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a choice."""

    choice: int
    reason: FinishReason
    stop_string: str
    stop_token_id: int | None
    usage: Usage
    timings: Timings


GenerationEvent = Started | Chunk | Finished


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finished: Finished


@dataclass(frozen=True, slots=True)
class Completion:
    """A generation collected to its end."""

    started: Started
    choices: tuple[Choice, ...]

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text
