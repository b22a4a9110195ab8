"""A sequence: one prompt and the answer that grows on it."""

from dataclasses import dataclass, field

from shared.ids import Digest
from worker_service.engine.messages import FinishReason, Submit


@dataclass(slots=True, eq=False)
class Sequence:
    """The engine's own state of a sequence; nobody else writes to it."""

    submit: Submit
    token_ids: list[int]
    """The prompt, then what was generated."""
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    blocks: list[int] = field(default_factory=list)
    num_bypasses: int = 0
    """Later sequences that got a row while this one waited."""
    holds_slots: bool = False
    """Its adapters are in slots, or on their way, and count it as a user."""
    adapters_ready_s: float = 0.0
    started_s: float | None = None
    """When the first step that worked on it began."""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.submit.prompt_token_ids)

    @property
    def num_generated(self) -> int:
        """Length of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens that must be computed before the next one is known."""
        return len(self.token_ids) - self.num_computed

    @property
    def ranks(self) -> dict[Digest, int]:
        """The adapters that must be in slots, with their ranks."""
        return {use.weights.digest: use.weights.max_rank for use in self.submit.adapters}

    def finish_reason(self, max_sequence_tokens: int) -> FinishReason | None:
        """Why the sequence ends with its last token; None when it goes on."""
        stop = self.submit.stop
        if self.token_ids[-1] in stop.stop_token_ids and self.num_generated >= stop.min_tokens:
            return FinishReason.STOP
        if self.num_generated >= stop.max_tokens or len(self.token_ids) >= max_sequence_tokens:
            return FinishReason.LENGTH
        return None

    @classmethod
    def new(cls, submit: Submit) -> "Sequence":
        """A sequence of which nothing has been computed."""
        return cls(submit, list(submit.prompt_token_ids))
