"""Steps that a start draws to compare its programs have their keys in the cache, whatever its sizes are."""

import random

from hypothesis import example, given
from hypothesis import strategies as st

from worker_service.engine.limits import EngineLimits
from worker_service.model.step_programs import _Steps
from worker_service.model.whole_forwards import MAX_TOKENS, _step_of


@st.composite
def limits(draw: st.DrawFn) -> EngineLimits:
    """Any that the options may come to."""
    block_tokens, max_step_tokens = draw(st.integers(1, 16)), draw(st.integers(1, MAX_TOKENS))
    max_running = draw(st.integers(1, max_step_tokens))
    fewest_blocks = max(max_running, -(-max_step_tokens // block_tokens))
    num_blocks = fewest_blocks + draw(st.integers(0, 8))
    return EngineLimits(
        num_slots=1,
        slot_rank=8,
        max_running=max_running,
        max_waiting=0,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        max_step_tokens=max_step_tokens,
        max_sequence_tokens=draw(st.integers(max_step_tokens, num_blocks * block_tokens)),
    )


SEVEN_ROWS_OF_EIGHT_BLOCKS = EngineLimits(
    num_slots=1,
    slot_rank=8,
    max_running=7,
    max_waiting=0,
    num_blocks=8,
    block_tokens=4,
    max_step_tokens=32,
    max_sequence_tokens=32,
)


@given(limits(), st.integers(0, 9))
@example(SEVEN_ROWS_OF_EIGHT_BLOCKS, 0)
def test_blocks_of_each_step_are_the_caches_own(limits: EngineLimits, seed: int) -> None:
    num_tokens = limits.max_step_tokens
    steps = _Steps((num_tokens,), limits, 50, random.Random(seed))
    for segments in (_step_of(random.Random(seed), limits, 50, num_tokens, ()), steps.step_of(num_tokens, ())):
        assert sum(len(segment.token_ids) for segment in segments) == num_tokens
        blocks = [block for segment in segments for block in segment.block_table]
        assert sorted(blocks) == list(range(len(blocks)))
        assert len(blocks) <= limits.num_blocks
        for segment in segments:
            end = segment.start + len(segment.token_ids)
            assert limits.blocks_for(end) == len(segment.block_table)
            assert end <= limits.max_sequence_tokens
