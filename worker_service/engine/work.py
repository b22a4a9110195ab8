"""Work of one step for one sequence."""

from dataclasses import dataclass

from worker_service.engine.messages import Scoring, Segment
from worker_service.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of one sequence to compute in a step, from `num_computed` on."""

    sequence: Sequence
    num_tokens: int

    def segment(self) -> Segment:
        """Segment that the model is asked to compute."""
        sequence, submit = self.sequence, self.sequence.submit
        assert sequence.gates is not None, "the adapters of a sequence in a step are copied"
        begin = sequence.num_computed
        end = begin + self.num_tokens
        early = sequence.num_generated < submit.stop.min_tokens
        return Segment(
            token_ids=tuple(sequence.token_ids[begin:end]),
            start=begin,
            block_table=tuple(sequence.blocks),
            gates=sequence.gates,
            logprobs=submit.logprobs,
            sampling=submit.sampling if end == len(sequence.token_ids) else None,
            history=sequence.token_ids,
            num_prompt_tokens=sequence.num_prompt_tokens,
            banned_token_ids=submit.stop.stop_token_ids if early else frozenset(),
            scoring=self._scoring(begin, end) if sequence.wants_prompt_scores else None,
        )

    def _scoring(self, begin: int, end: int) -> Scoring | None:
        """Every token of the prompt but the first is scored at the position before it."""
        submit = self.sequence.submit
        following = submit.prompt_token_ids[begin + 1 : end + 1]
        return Scoring(following, submit.logprobs.num_alternatives) if following else None
