"""Messages between front and engine, and the calls that the engine makes on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NewType, Protocol

from hotslot.contract.generation import FinishReason, Logprobs, Sampling, TokenAlternative
from hotslot.errors import HotslotError
from hotslot.ids import DEFAULT_TENANT, NO_PARTY, Digest, PartyId, TenantId
from worker_service.engine.graph_counts import GraphCounts
from worker_service.engine.snapshot import EngineSnapshot

SequenceId = NewType("SequenceId", int)
"""One sequence within one engine; never used twice."""


NO_LOGPROBS = Logprobs(enabled=False)
"""Log-probabilities of a sequence that wants none."""


class AdapterWeights(Protocol):
    """A version in host memory, checked and ready to be copied into slots."""

    @property
    def digest(self) -> Digest:
        """The version's digest."""
        ...

    @property
    def max_rank(self) -> int:
        """The largest rank of any module."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in host memory."""
        ...


@dataclass(frozen=True, slots=True)
class StopRules:
    """Conditions for the end of a sequence. Stop strings are the front's concern: it cancels the sequence."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    """End-of-sequence tokens included, unless the request ignores them."""


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """One adapter of a sequence's mix."""

    weights: AdapterWeights
    weight: float


# front → engine:


@dataclass(frozen=True, slots=True)
class Submit:
    """Compute this sequence."""

    sequence_id: SequenceId
    prompt_token_ids: tuple[int, ...]
    adapters: tuple[AdapterUse, ...]
    sampling: Sampling
    """Each position draws from its own generator, seeded with its seed and the position."""
    stop: StopRules
    arrival_s: float
    """On the engine's monotonic clock."""
    deadline_s: float | None = None
    """On the engine's monotonic clock; past it the sequence fails."""
    priority: int = 0
    """Orders a tenant's own sequences; higher first."""
    tenant: TenantId = DEFAULT_TENANT
    logprobs: Logprobs = NO_LOGPROBS
    party: PartyId = NO_PARTY
    """Parties share the engine, and tenants what their party has of it."""
    is_alone: bool = True
    """False for one of several choices of a request, which fails where one of them does."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget this sequence at once and free what it held; unknown ids are ignored."""

    sequence_id: SequenceId


@dataclass(frozen=True, slots=True)
class Activate:
    """Bring an adapter into slots; `done` gets the outcome on the engine's thread."""

    weights: AdapterWeights
    pin: bool
    done: Callable[[Activated | HotslotError], None]


@dataclass(frozen=True, slots=True)
class Unpin:
    """Let an adapter be evicted again; unknown digests are ignored."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Deactivate:
    """Free an adapter's slots once its last user ended; `done` is called on the engine's thread.

    It gets AdapterPinnedError when the adapter is pinned, also after this was sent.
    """

    digest: Digest
    done: Callable[[HotslotError | None], None]


@dataclass(frozen=True, slots=True)
class GiveUpDeactivate:
    """Withdraw a Deactivate that has not happened yet."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Inspect:
    """Report a snapshot."""

    done: Callable[[EngineSnapshot], None]


EngineCommand = Submit | Cancel | Activate | Unpin | Deactivate | GiveUpDeactivate | Inspect


# engine → front:


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One token of one sequence."""

    token_id: int
    logprob: float | None = None
    """Natural logarithm, after penalties and before temperature; only if asked for."""
    alternatives: tuple[TokenAlternative, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenReady:
    """A sequence has one more token. The first one carries when work on the sequence began."""

    sequence_id: SequenceId
    token: SampledToken
    time_s: float
    started_s: float
    """Begin of the first step that worked on it."""
    adapters_ready_s: float
    """Time at which all of its adapters were in slots."""
    cached_tokens: int = 0
    """Tokens of the prompt that were found in the prefix cache."""
    prompt_logprobs: tuple[SampledToken, ...] = ()
    """One for each token of the prompt but the first; with the first token, if asked for."""


@dataclass(frozen=True, slots=True)
class SequenceFinished:
    """A sequence ended by itself; its last TokenReady came before."""

    sequence_id: SequenceId
    reason: FinishReason
    stop_token_id: int | None
    time_s: float


@dataclass(frozen=True, slots=True)
class SequenceFailed:
    """A sequence cannot go on."""

    sequence_id: SequenceId
    error: HotslotError


EngineEvent = TokenReady | SequenceFinished | SequenceFailed
"""Event of a sequence; events come in the order of the steps."""


@dataclass(frozen=True, slots=True)
class Activated:
    """An adapter is in slots: already, or after waiting for free ones and copying."""

    digest: Digest
    slots: tuple[int, ...]
    already: bool
    wait_s: float
    copy_s: float


# engine → model:


PENDING: Final = "pending"
"""Nothing is left to write; a device is still at it."""
SliceState = Literal["pending"] | None
"""State of a copy after a slice: None where more may be written at once."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Log-probabilities of a prompt that a step computes."""

    token_ids: tuple[int, ...]
    """The tokens that follow the segment's first positions."""
    num_alternatives: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence that a step computes."""

    token_ids: tuple[int, ...]
    start: int
    """Position of the first of them."""
    block_table: tuple[int, ...]
    """KV blocks of the sequence in order; they reach at least to the segment's end."""
    gates: tuple[tuple[int, float], ...]
    """The slots that are on, with their weights."""
    sampling: Sampling | None
    """Set when the token after the segment is wanted."""
    history: Sequence[int] = field(default=())
    """All tokens of the sequence so far, for penalties; read only while the step runs."""
    num_prompt_tokens: int = 0
    banned_token_ids: frozenset[int] = frozenset()
    """Tokens that may not be chosen: the stop tokens, while fewer than `min_tokens` were generated."""
    scoring: Scoring | None = None
    logprobs: Logprobs = NO_LOGPROBS
    """Log-probabilities of the token after the segment."""
    fed_by: int | None = None
    """Place in the step launched before of the segment whose token is this one's, where that is not known yet; its one
    token stands for it, and `history` lacks it."""


@dataclass(frozen=True, slots=True)
class Computed:
    """Result of a step for one segment."""

    token: SampledToken | None = None
    """The token after it, if that was wanted."""
    scores: tuple[SampledToken, ...] = ()
    """One for each token of its scoring: the model's own log-probabilities, without penalties."""
    is_finite: bool = True
    """True if the logits of both were finite; otherwise neither is there."""


class ModelRunner(Protocol):
    """A model with slots and a KV cache; used by the engine's thread alone."""

    @property
    def recompiles(self) -> int:
        """Graphs compiled since the warm-up ended."""
        ...

    @property
    def graphs(self) -> GraphCounts:
        """Captured steps, and what ran without."""
        ...

    def write_slots(self, slots: Sequence[int], weights: AdapterWeights) -> Iterator[SliceState]:
        """Copy an adapter into slots, one bounded slice for each item taken; done when exhausted.

        No gate may be on for these slots meanwhile, but for steps that were launched before.
        """
        ...

    @property
    def depth(self) -> int:
        """Steps that may be launched while one before them has not been collected: 0 or 1."""
        ...

    def launch(self, segments: Sequence[Segment]) -> None:
        """Begin to compute one step, after all that was launched and written before.

        Raises ModelLostError when no later step can succeed; a launch that raises leaves nothing to collect.
        """
        ...

    def collect(self) -> list[Computed]:
        """Results of the first step that was not collected yet, one for each segment, waiting for it; raises as it."""
        ...
