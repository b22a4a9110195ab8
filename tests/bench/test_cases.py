"""Cases fit together, and each goes to peers that can answer it."""

import pytest

from tools.bench.cases import CASES, Case, RunLevel
from tools.bench.peers.roster import PEERS
from tools.bench.side_by_side import Group, RoundPace, groups, measure, rows_of, turned


@pytest.mark.parametrize("level", list(RunLevel))
def test_names_tell_cases_apart(level: RunLevel) -> None:
    names = [case.name for case in CASES[level]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("level", list(RunLevel))
def test_every_peer_can_answer_its_cases(level: RunLevel) -> None:
    for case in CASES[level]:
        rows = rows_of(case, 0)
        assert len({row.adapter for row in rows}) == max(case.adapters, 1), case.name
        assert {len(row.prompt) for row in rows} == {case.context}
        assert [spec.name for spec in case.peers if not spec.can_answer(rows)] == [], case.name


def test_every_peer_is_in_the_runs_that_judge_targets() -> None:
    assert {spec.name for case in CASES[RunLevel.MAIN] for spec in case.peers} == set(PEERS)


def test_other_seeds_have_other_prompts() -> None:
    case = CASES[RunLevel.QUICK][0]
    assert rows_of(case, 1) == rows_of(case, 1)
    assert rows_of(case, 1) != rows_of(case, 2)


def test_one_set_of_processes_answers_cases_of_the_same_threads_and_rank() -> None:
    found = list(groups(CASES[RunLevel.FULL], 2))
    assert [case for group in found for case in group.cases] != []
    assert sorted(case.name for group in found for case in group.cases) == sorted(c.name for c in CASES[RunLevel.FULL])
    for group in found:
        assert {(case.rank, 2 if case.all_cores else 1) for case in group.cases} == {
            (group.cases[0].rank, group.threads)
        }
    assert len({(group.threads, group.cases[0].rank) for group in found}) == len(found)


def test_each_round_begins_with_another_peer() -> None:
    names = ["a", "b", "c"]
    assert [turned(names, number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert all(sorted(turned(names, number)) == names for number in range(4))


def test_slow_peers_get_few_tokens_and_quick_ones_not_too_many() -> None:
    pace = RoundPace(3, 1.0, min_tokens=8, max_tokens=96)
    assert [pace.tokens_for(step_s) for step_s in (2.0, 0.05, 0.001)] == [8, 20, 96]


def test_a_case_says_what_is_unusual() -> None:
    case = Case(8, 8, 64, (), rank=64, all_cores=False)
    assert case.name == "8 rows, 8 adapters of rank 64, context 64, 1 thread"


@pytest.mark.parametrize(("within_s", "why"), [(0.0, "no time was left of 0 s for all cases"), (60.0, "none is there")])
def test_what_a_run_has_no_time_for_is_skipped_with_the_reason(
    within_s: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = CASES[RunLevel.QUICK][:2]
    monkeypatch.setattr(
        Group, "start", lambda self, _: self.skipped.update({spec.name: "none is there" for spec in PEERS.values()})
    )
    found = measure(cases, RoundPace(2, 1.0, within_s=within_s))
    assert [case["name"] for case in found["cases"]] == [case.name for case in cases]
    for case, result in zip(cases, found["cases"], strict=True):
        assert result["skipped"] == {spec.name: why for spec in case.peers}
