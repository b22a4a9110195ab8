"""Work of one step for one sequence."""

from dataclasses import dataclass

from worker_service.engine.messages import Scoring, Segment
from worker_service.engine.sequence import Sequence

UNKNOWN_TOKEN = 0
"""Stands in a segment for a token that the step before it has yet to choose."""


@dataclass(slots=True, eq=False)
class Work:
    """Tokens of one sequence to compute in a step, from `begin` on."""

    sequence: Sequence
    num_tokens: int
    begin: int
    turn: int
    """Times that the sequence had lost its row by then: work of an earlier turn left nothing in its present blocks."""
    wants_token: bool
    """True if the token after it is to be chosen."""

    @classmethod
    def of(cls, sequence: Sequence, num_tokens: int) -> "Work":
        """The next tokens of a sequence with a row."""
        begin = sequence.num_computed
        wants_token = begin + num_tokens >= len(sequence.token_ids)
        return cls(sequence, num_tokens, begin, sequence.num_preemptions, wants_token)

    @property
    def end(self) -> int:
        """Position behind its last token."""
        return self.begin + self.num_tokens

    @property
    def is_fed(self) -> bool:
        """True if its token is not known yet: the step before it chooses it."""
        return self.begin == len(self.sequence.token_ids)

    @property
    def is_current(self) -> bool:
        """True while the sequence has the row and the blocks that this was planned for."""
        return self.turn == self.sequence.num_preemptions

    def launch(self, now_s: float) -> None:
        """Count it as computed, from where the next step goes on."""
        if self.sequence.started_s is None:
            self.sequence.started_s = now_s
        self.sequence.num_computed = self.end
        self.sequence.num_awaited += self.wants_token

    def land(self) -> None:
        """Its results are there, or will never be."""
        self.sequence.num_awaited -= self.wants_token

    def undo(self) -> None:
        """Have it computed again; only for what was launched last of its sequence, which has its row or has ended."""
        self.sequence.num_computed = self.begin

    def segment(self, fed_by: int | None = None) -> Segment:
        """Segment that the model is asked to compute; `fed_by` is its place in the step before, where that feeds it."""
        sequence, submit = self.sequence, self.sequence.submit
        assert sequence.gates is not None, "the adapters of a sequence in a step are copied"
        assert (fed_by is not None) == self.is_fed
        begin, end = self.begin, self.end
        early = sequence.num_generated < submit.stop.min_tokens
        return Segment(
            token_ids=tuple(sequence.token_ids[begin:end]) if fed_by is None else (UNKNOWN_TOKEN,),
            start=begin,
            block_table=tuple(sequence.blocks),
            gates=sequence.gates,
            logprobs=submit.logprobs,
            sampling=submit.sampling if self.wants_token else None,
            history=sequence.token_ids,
            num_prompt_tokens=sequence.num_prompt_tokens,
            banned_token_ids=submit.stop.stop_token_ids if early else frozenset(),
            scoring=self._scoring(begin, end) if sequence.wants_prompt_scores else None,
            fed_by=fed_by,
        )

    def _scoring(self, begin: int, end: int) -> Scoring | None:
        """Every token of the prompt but the first is scored at the position before it."""
        submit = self.sequence.submit
        following = submit.prompt_token_ids[begin + 1 : end + 1]
        return Scoring(following, submit.logprobs.num_alternatives) if following else None
