"""Who finds what in the prefix cache, and that nothing else is ever read."""

import pytest

from hotslot.ids import TenantId
from tests.support.engine_bench import Bench, adapter, expected, small_limits
from tests.support.fake_model import FakeAdapter, logprob_from, states
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.prefix_keys import block_key, root_key

PROMPT = list(range(10))
"""Two full blocks of four tokens, and two tokens more."""
ACME, ZETA = TenantId("acme"), TenantId("zeta")


def roomy() -> EngineLimits:
    return small_limits(num_blocks=40, max_running=4, num_slots=4, max_step_tokens=16)


def bench(policy: EnginePolicy | None = None) -> Bench:
    return Bench(roomy(), policy)


def test_a_prompt_that_begins_alike_is_computed_from_where_it_differs() -> None:
    engine = bench()
    engine.submit(1, PROMPT)
    engine.run()
    engine.submit(2, [*PROMPT[:8], 40, 41, 42])
    engine.run()
    assert engine.first(1).cached_tokens == 0
    assert engine.first(2).cached_tokens == 8
    first_segment = next(s for step in engine.runner.steps for s in step if 40 in s.token_ids)
    assert (first_segment.start, len(first_segment.token_ids)) == (8, 3)
    assert engine.tokens(2) == expected([*PROMPT[:8], 40, 41, 42], 4)


def test_the_last_token_of_a_prompt_is_computed_even_if_its_block_is_known() -> None:
    engine = bench()
    engine.submit(1, PROMPT[:8])
    engine.run()
    engine.submit(2, PROMPT[:8])
    engine.run()
    assert engine.first(2).cached_tokens == 4
    assert engine.tokens(2) == engine.tokens(1) == expected(PROMPT[:8], 4)


def test_an_answer_is_found_when_the_next_turn_of_a_chat_repeats_it() -> None:
    engine = bench()
    engine.submit(1, PROMPT, max_tokens=7)
    engine.run()
    longer = [*PROMPT, *engine.tokens(1), 3]
    engine.submit(2, longer)
    engine.run()
    assert engine.first(2).cached_tokens == 16
    assert engine.tokens(2) == expected(longer, 4)


def test_nothing_is_shared_between_mixes() -> None:
    engine = bench()
    engine.submit(1, PROMPT, adapter(1))
    engine.run()
    engine.submit(2, PROMPT)
    engine.submit(3, PROMPT, adapter(2))
    engine.submit(4, PROMPT, adapter(1), weight=0.5)
    engine.run()
    engine.submit(5, PROMPT, adapter(1), adapter(2))
    engine.run()
    assert [engine.first(number).cached_tokens for number in (1, 2, 3, 4, 5)] == [0] * 5
    engine.submit(6, PROMPT, adapter(2), adapter(1))
    engine.submit(7, PROMPT, adapter(3), weight=0.0)
    engine.run()
    assert engine.first(6).cached_tokens == 8, "the order of a mix does not matter"
    assert engine.first(7).cached_tokens == 8, "an adapter without weight is the base"


@pytest.mark.parametrize("adapters", [(), (adapter(1),)], ids=["base", "adapter"])
def test_one_tenant_cannot_tell_what_another_has_asked(adapters: tuple[FakeAdapter, ...]) -> None:
    engine = bench()
    engine.submit(1, PROMPT, *adapters, tenant=ACME)
    engine.run()
    engine.submit(2, PROMPT, *adapters, tenant=ZETA)
    engine.run()
    engine.submit(3, PROMPT, *adapters, tenant=ACME)
    engine.run()
    assert engine.first(2).cached_tokens == 0
    assert engine.first(3).cached_tokens == 8


def test_base_prefixes_are_shared_between_tenants_only_when_that_is_set() -> None:
    engine = bench(EnginePolicy(share_base_prefixes=True))
    engine.submit(1, PROMPT, tenant=ACME)
    engine.submit(2, PROMPT, adapter(1), tenant=ACME)
    engine.run()
    engine.submit(3, PROMPT, tenant=ZETA)
    engine.submit(4, PROMPT, adapter(1), tenant=ZETA)
    engine.run()
    assert engine.first(3).cached_tokens == 8
    assert engine.first(4).cached_tokens == 0


def test_a_tenant_cannot_be_named_so_that_its_keys_are_those_of_all() -> None:
    shared = root_key(ACME, (), share_base=True)
    assert root_key(ZETA, (), share_base=True) == shared
    assert root_key(ACME, (), share_base=False) != shared
    assert block_key(shared, [1, 2]) != block_key(shared, [2, 1])


def test_turned_off_nothing_is_found() -> None:
    engine = bench(EnginePolicy(prefix_cache=False))
    engine.submit(1, PROMPT)
    engine.run()
    engine.submit(2, PROMPT)
    engine.run()
    assert engine.first(2).cached_tokens == 0
    assert engine.snapshot().kept_blocks == 0


def test_prompts_that_come_together_compute_their_common_beginning_once() -> None:
    engine = bench()
    prompt = list(range(20))
    for number in (1, 2, 3, 4):
        engine.submit(number, prompt, max_tokens=2)
    engine.run()
    assert engine.first(2).cached_tokens == engine.first(4).cached_tokens == 16
    # Each computes its last block and one token of its answer itself.
    assert engine.num_computed(0) == 20 + 3 * 4 + 4 * 1
    assert all(engine.tokens(number) == expected(prompt, 2) for number in (1, 2, 3, 4))


def test_a_block_in_use_is_never_reclaimed_while_two_share_it() -> None:
    engine = Bench(small_limits(num_blocks=8, max_sequence_tokens=32))
    engine.submit(1, PROMPT, max_tokens=12)
    engine.turns(3)
    engine.submit(2, PROMPT, max_tokens=12)
    engine.turns(2)
    engine.cancel(1)
    engine.submit(3, list(range(20, 34)), max_tokens=4)
    engine.run()
    assert engine.first(2).cached_tokens == 8
    assert engine.tokens(2) == expected(PROMPT, 12)
    assert engine.tokens(3) == expected(list(range(20, 34)), 4)


def test_cached_blocks_give_way_before_a_sequence_is_preempted() -> None:
    engine = Bench(small_limits())
    for number in range(1, 8):
        engine.submit(number, [number] * 9, max_tokens=4)
        engine.run()
    snapshot = engine.snapshot()
    assert snapshot.preemptions == 0
    assert snapshot.kept_blocks > 0
    assert snapshot.free_blocks == 6


def test_the_beginning_of_a_prompt_outlives_its_end() -> None:
    engine = Bench(small_limits())
    engine.submit(1, PROMPT * 2, max_tokens=1)
    engine.run()
    engine.submit(2, [40] * 10, max_tokens=1)
    engine.run()
    engine.submit(3, PROMPT * 2, max_tokens=1)
    engine.run()
    assert 0 < engine.first(3).cached_tokens < 16
    assert engine.tokens(3) == expected(PROMPT * 2, 1)


def test_prompt_logprobs_are_computed_and_not_taken_from_the_cache() -> None:
    engine = bench()
    engine.submit(1, PROMPT)
    engine.run()
    engine.submit(2, PROMPT, prompt_logprobs=True)
    engine.run()
    first = engine.first(2)
    assert first.cached_tokens == 0
    assert [token.token_id for token in first.prompt_logprobs] == PROMPT[1:]
    assert engine.tokens(2) == expected(PROMPT, 4)
    assert engine.first(1).prompt_logprobs == ()


def test_prompt_logprobs_are_whole_after_a_preemption_in_the_middle_of_the_prompt() -> None:
    engine = Bench(small_limits(num_blocks=9, max_sequence_tokens=36, max_step_tokens=2))
    engine.submit(1, [30] * 4, max_tokens=30)
    engine.turns(4)
    prompt = list(range(24))
    engine.submit(2, prompt, prompt_logprobs=True, max_tokens=1)
    engine.run()
    assert engine.snapshot().preemptions > 0
    assert [token.token_id for token in engine.first(2).prompt_logprobs] == prompt[1:]
    scores = [logprob_from(state, token) for state, token in zip(states(prompt, []), prompt[1:], strict=False)]
    assert [token.logprob for token in engine.first(2).prompt_logprobs] == scores
