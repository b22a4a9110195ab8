"""The self-test's plan: prompts keep their length, steps stay within what a worker computes at once."""

from hypothesis import given
from hypothesis import strategies as st

from worker_service.engine.limits import EngineLimits
from worker_service.model.self_test_plan import NUM_ANSWER_TOKENS, PROMPT_LENGTHS, plan_self_test


@st.composite
def limits(draw: st.DrawFn) -> EngineLimits:
    """Any that an engine takes."""
    max_running = draw(st.integers(1, 12))
    block_tokens = draw(st.integers(1, 32))
    max_sequence_tokens = draw(st.integers(1, 80))
    fewest_blocks = max(max_running, -(-max_sequence_tokens // block_tokens))
    return EngineLimits(
        num_slots=1,
        slot_rank=8,
        max_running=max_running,
        max_waiting=0,
        num_blocks=fewest_blocks + draw(st.integers(0, 40)),
        block_tokens=block_tokens,
        max_step_tokens=max_running + draw(st.integers(0, 130)),
        max_sequence_tokens=max_sequence_tokens,
    )


@given(limits())
def test_every_token_is_computed_once_and_in_order_within_the_limits(limits: EngineLimits) -> None:
    plan = plan_self_test(limits)
    assert 1 <= len(plan.lengths) <= min(limits.max_running, len(PROMPT_LENGTHS))
    assert sum(map(limits.blocks_for, plan.lengths)) <= limits.num_blocks
    computed = [0] * len(plan.lengths)
    for step in plan.steps:
        assert 1 <= sum(piece.end - piece.begin for piece in step) <= limits.max_step_tokens
        assert len({piece.row for piece in step}) == len(step)
        for piece in step:
            assert computed[piece.row] == piece.begin < piece.end
            computed[piece.row] = piece.end
    assert tuple(computed) == plan.lengths


@given(limits())
def test_prompts_are_as_long_however_little_a_step_holds(limits: EngineLimits) -> None:
    plan = plan_self_test(limits)
    expected = [min(length + NUM_ANSWER_TOKENS, limits.max_sequence_tokens) for length in PROMPT_LENGTHS]
    assert list(plan.lengths) == expected[: len(plan.lengths)]


@given(limits())
def test_prompts_take_no_more_steps_than_they_must_and_answers_one_for_each_token(limits: EngineLimits) -> None:
    plan = plan_self_test(limits)
    answers = [step for step in plan.steps if all(piece.end - piece.begin == 1 and piece.begin for piece in step)]
    num_answers = min(NUM_ANSWER_TOKENS, plan.lengths[0] - 1)
    assert len(answers) >= num_answers
    prompt_tokens = sum(length - min(NUM_ANSWER_TOKENS, length - 1) for length in plan.lengths)
    assert len(plan.steps) == -(-prompt_tokens // limits.max_step_tokens) + num_answers
