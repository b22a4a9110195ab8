"""The bounds within which an engine works, from which all memory follows, and what it may decide freely."""

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
    """Sequences that may wait beyond those that idle rows will take; more are refused."""
    num_blocks: int
    """KV blocks, without the one that padding writes to."""
    block_tokens: int
    """Tokens of one KV block."""
    max_step_tokens: int
    """Tokens that one step may compute over all sequences; at least max_running."""
    max_sequence_tokens: int
    """Longest prompt and answer together."""
    max_bypasses: int = 16
    """Most later sequences that get a row before one whose turn it is, because their adapters have slots."""

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


@dataclass(frozen=True, slots=True)
class EnginePolicy:
    """Choices that change speed, never answers."""

    prefix_cache: bool = True
    """Keep the keys and values of full blocks for later sequences that begin alike."""
    share_base_prefixes: bool = False
    """Share cached prefixes of the base alone between tenants; answering times then tell what others have asked."""
    ageing_s: float = 10.0
    """Time without a row after which a priority counts as one higher."""
    residency_slack_tokens: int = 512
    """Tokens that a mix may get beyond the least served one because its adapters are in slots already."""
    slice_tokens: int = 512
    """Tokens that a tenant, or a party, may get beyond another one that waits, where they can only take turns."""
    look_ahead: int = 32
    """Most waiting sequences that are looked at to fill a row or to bring an adapter ahead."""
