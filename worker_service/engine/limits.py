"""The bounds within which an engine works; all memory follows from them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Counts and sizes, fixed for the life of the engine."""

    num_slots: int
    slot_rank: int
    """Ranks of one slot; an adapter of rank r takes ceil(r / slot_rank) slots."""
    max_running: int
    """Sequences (rows) that a step may compute."""
    max_waiting: int
    """Sequences that may wait for a row; more are refused."""
    num_blocks: int
    """KV blocks, without the one that padding writes to."""
    block_tokens: int
    """Tokens of one KV block."""
    max_step_tokens: int
    """Tokens that one step may compute over all sequences; at least max_running."""
    max_sequence_tokens: int
    """Longest prompt and answer together."""
    max_bypasses: int = 64
    """How many later sequences may get a row before one that waits for slots."""

    def __post_init__(self) -> None:
        assert self.max_step_tokens >= self.max_running >= 1
        assert self.num_slots >= 1
        assert self.slot_rank >= 1
        assert self.num_blocks * self.block_tokens >= self.max_sequence_tokens, "one sequence must fit"

    def slots_for(self, rank: int) -> int:
        """Slots that an adapter of this rank takes."""
        return -(-rank // self.slot_rank)

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that this many tokens take."""
        return -(-num_tokens // self.block_tokens)
