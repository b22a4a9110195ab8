"""The self-test's prompts, and the steps in which a worker computes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker_service.engine.limits import EngineLimits

PROMPT_LENGTHS = (17, 3, 9)
"""Rows of different lengths beside each other; where fewer fit, the longest is kept."""
NUM_ANSWER_TOKENS = 3
"""Tokens after each prompt that are computed one at a time, as answers are."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one row that a step computes."""

    row: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows and steps."""

    lengths: tuple[int, ...]
    """Tokens of each row, prompt and answer."""
    steps: tuple[tuple[Piece, ...], ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All of them, in the order of computation."""
        return tuple(piece for step in self.steps for piece in step)


def plan_self_test(limits: EngineLimits) -> Plan:
    """As many rows as run at once, as long as a sequence and the cache hold; a step takes what fits into it."""
    longest = limits.max_sequence_tokens
    lengths = [min(length + NUM_ANSWER_TOKENS, longest) for length in PROMPT_LENGTHS[: limits.max_running]]
    while sum(map(limits.blocks_for, lengths)) > limits.num_blocks:
        lengths.pop()
    answers = [min(NUM_ANSWER_TOKENS, length - 1) for length in lengths]
    prompts = [length - answer for length, answer in zip(lengths, answers, strict=True)]
    steps = [*_prompt_steps(prompts, limits.max_step_tokens)]
    for index in range(NUM_ANSWER_TOKENS):
        rows = [row for row in range(len(lengths)) if index < answers[row]]
        if rows:
            steps.append(tuple(Piece(row, prompts[row] + index, prompts[row] + index + 1) for row in rows))
    return Plan(tuple(lengths), tuple(steps))


def _prompt_steps(lengths: Sequence[int], max_step_tokens: int) -> list[tuple[Piece, ...]]:
    """The prompts in as few steps as possible, the first row's tokens first."""
    steps = []
    done = [0] * len(lengths)
    while any(begin < length for begin, length in zip(done, lengths, strict=True)):
        step = []
        room = max_step_tokens
        for row, length in enumerate(lengths):
            end = min(length, done[row] + room)
            if end > done[row]:
                step.append(Piece(row, done[row], end))
                room -= end - done[row]
                done[row] = end
        steps.append(tuple(step))
    return steps
