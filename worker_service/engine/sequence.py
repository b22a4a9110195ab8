"""A sequence: one prompt and the answer that grows on it."""

from dataclasses import dataclass, field

from hotslot.contract.generation import FinishReason
from hotslot.ids import Digest
from worker_service.engine.giving_way import Owner
from worker_service.engine.kv_blocks import BlockKey
from worker_service.engine.messages import AdapterWeights, SampledToken, Submit
from worker_service.engine.prefix_keys import Mix


@dataclass(slots=True, eq=False)
class Sequence:
    """The engine's own state of a sequence; no other thread writes to it."""

    submit: Submit
    token_ids: list[int]
    """The prompt, then what was generated."""
    weights: dict[Digest, AdapterWeights]
    """The adapters that must be in slots."""
    mix: Mix
    """The adapters that are on."""
    num_prompt_tokens: int
    has_row: bool = False
    num_computed: int = 0
    """Tokens whose keys and values are in the cache, or will be when the steps that were launched have run."""
    num_settled: int = 0
    """Those of `num_computed` that are of steps whose results are known."""
    num_awaited: int = 0
    """Tokens that steps have been launched for and whose results are not known yet."""
    blocks: list[int] = field(default_factory=list)
    block_keys: list[BlockKey] = field(default_factory=list)
    """The key of all that comes before its blocks, then of its full blocks, as far as they were needed."""
    num_named_blocks: int = 0
    """Number of its blocks that other sequences can find."""
    num_cached: int | None = None
    """Tokens that it found in the prefix cache when it first got a row."""
    prompt_scores: list[SampledToken] = field(default_factory=list)
    """Log-probabilities of the prompt's tokens but the first, as far as computed; only if asked for."""
    num_bypasses: int = 0
    """Later sequences that got a row while it was this one's turn."""
    num_preemptions: int = 0
    is_charged: bool = False
    """Its prompt was charged to its tenant and mix."""
    holds_slots: bool = False
    """Its adapters are in slots, or on their way, and count it as a user."""
    gates: tuple[tuple[int, float], ...] | None = None
    """Set once all of its adapters are copied."""
    adapters_ready_s: float = 0.0
    row_s: float | None = None
    """Time of its first row."""
    started_s: float | None = None
    """Begin of the first step that worked on it."""
    first_token_s: float | None = None

    @property
    def owner(self) -> Owner:
        """Party and tenant that it is computed for."""
        return Owner(self.submit.party, self.submit.tenant)

    @property
    def num_generated(self) -> int:
        """Length of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens that must be computed before the next one is known."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_placed(self) -> int:
        """Tokens that need room in the cache, with the one that is being chosen."""
        return len(self.token_ids) + self.num_awaited

    @property
    def needs_host(self) -> bool:
        """True if what comes next depends on its last token's value here, not on the device alone."""
        sampling, submit = self.submit.sampling, self.submit
        return (
            submit.logprobs.enabled
            or submit.logprobs.prompt
            or bool(sampling.logit_bias)
            or sampling.counts_tokens
            or self.num_generated < submit.stop.min_tokens
        )

    def may_outlive(self, num_more: int, max_sequence_tokens: int) -> bool:
        """Tell whether a sequence with so many tokens more can still go on."""
        return (
            self.num_generated + num_more < self.submit.stop.max_tokens
            and len(self.token_ids) + num_more < max_sequence_tokens
        )

    @property
    def wants_prompt_scores(self) -> bool:
        """True if positions of the prompt must be computed because their log-probabilities are still wanted."""
        return self.submit.logprobs.prompt and len(self.prompt_scores) < self.num_prompt_tokens - 1

    def finish_reason(self, max_sequence_tokens: int) -> FinishReason | None:
        """Reason for which the sequence ends with its last token; None when it goes on."""
        stop = self.submit.stop
        if self.token_ids[-1] in stop.stop_token_ids and self.num_generated >= stop.min_tokens:
            return FinishReason.STOP
        return None if self.may_outlive(0, max_sequence_tokens) else FinishReason.LENGTH

    @classmethod
    def new(cls, submit: Submit) -> "Sequence":
        """A sequence of which nothing has been computed."""
        return cls(
            submit,
            list(submit.prompt_token_ids),
            {use.weights.digest: use.weights for use in submit.adapters},
            tuple(sorted((use.weights.digest, use.weight) for use in submit.adapters if use.weight != 0.0)),
            len(submit.prompt_token_ids),
        )
