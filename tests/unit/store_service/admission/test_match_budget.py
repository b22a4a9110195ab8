"""A config whose expressions take longer than those of real ones rests as long as it works, and ends in time."""

import time

import pytest

from store_service.admission.match_budget import QUICK_S, MatchBudgetError, bounded_matching, spend


def match_for(cpu_s: float) -> None:
    """Matches of a fraction of a millisecond each, until this thread has worked so long."""
    until_s = time.thread_time() + cpu_s
    while time.thread_time() < until_s:
        spend()
        sum(range(2_000))


def test_a_slow_config_leaves_half_of_the_time_to_others() -> None:
    began_s, worked_s = time.monotonic(), time.thread_time()
    with bounded_matching(60.0) as budget:
        match_for(3 * QUICK_S)
    worked_s = time.thread_time() - worked_s
    assert budget.rested_s == pytest.approx(worked_s - QUICK_S, abs=0.3 * QUICK_S)
    assert time.monotonic() - began_s > worked_s + budget.rested_s - 0.01


def test_a_config_as_real_ones_are_rests_never() -> None:
    with bounded_matching(60.0) as budget:
        match_for(QUICK_S / 2)
    assert budget.num_matches > 10
    assert not budget.rested_s


def test_rests_are_no_part_of_the_budget() -> None:
    with pytest.raises(MatchBudgetError, match=f"more than {4 * QUICK_S:g} s"), bounded_matching(4 * QUICK_S) as budget:
        match_for(60.0)
    assert budget.rested_s == pytest.approx(3 * QUICK_S, abs=0.3 * QUICK_S)


def test_each_config_has_a_budget_of_its_own() -> None:
    for _ in range(4):
        with bounded_matching(60.0) as budget:
            match_for(QUICK_S / 2)
        assert not budget.rested_s
