"""Targets are judged by the figures that the parts write."""

import pytest

from tests.bench.results import READ_GB_S, results
from tools.bench import check
from tools.bench.figures import BenchFigures
from tools.bench.notes import NOTES
from tools.bench.peers.roster import ENGINE, GRPC, LLAMA, VLLM
from tools.bench.smollm import ADAPTER_BYTES_A_RANK, KV_BYTES
from tools.bench.targets import NEEDS_GPU, Line, lines

ONE_ROW = "1 row, base, context 64, all cores"
EIGHT_ROWS = "8 rows, base, context 64, all cores"
MIXED = "8 rows, 8 adapters, context 64, all cores"
NOT_MEASURED = {NEEDS_GPU, "activated adapters are not served yet"}


def by_key(found: list[Line]) -> dict[str, Line]:
    return {line.key: line for line in found}


def judged(rates: dict[tuple[str, str], float]) -> dict[str, Line]:
    return by_key(lines(BenchFigures(results(rates))))


def test_a_whole_run_judges_every_target_that_can_be_judged_here() -> None:
    found = lines(BenchFigures(results()))
    assert len(by_key(found)) == len(found)
    assert {line.key for line in found if line.found is None and line.why_not not in NOT_MEASURED} == set()


def test_without_figures_nothing_is_judged() -> None:
    assert {line.is_met for line in lines(BenchFigures({}))} == {None}


def test_one_row_is_compared_with_the_better_of_the_peers() -> None:
    rates = {(GRPC.name, ONE_ROW): 50.0, (LLAMA.name, ONE_ROW): 40.0, (VLLM.name, ONE_ROW): 45.0}
    line = judged(rates)["1 row / best"]
    assert line.found == pytest.approx(50 / 45)
    assert line.is_met is False
    assert VLLM.name in line.peer
    assert judged(rates | {(VLLM.name, ONE_ROW): 40.0})["1 row / best"].is_met is True


def test_a_peer_that_was_skipped_is_named_and_the_other_one_judges() -> None:
    written = results({(GRPC.name, ONE_ROW): 50.0, (LLAMA.name, ONE_ROW): 40.0})
    case = next(case for case in written["parts"]["side_by_side"]["result"]["cases"] if case["name"] == ONE_ROW)
    del case["peers"][VLLM.name]
    line = by_key(lines(BenchFigures(written)))["1 row / best"]
    assert line.found == pytest.approx(50 / 40)
    assert f"without {VLLM.name}" in line.peer


def test_adapters_are_held_against_the_time_of_reading_them() -> None:
    needed_s = 8 * 16 * ADAPTER_BYTES_A_RANK / (READ_GB_S * 1e9)
    base_s = 0.04
    rates = {(ENGINE.name, EIGHT_ROWS): 8 / base_s, (ENGINE.name, MIXED): 8 / (base_s + 1.4 * needed_s)}
    line = judged(rates)["adapters' time / bytes"]
    assert line.found == pytest.approx(1.4)
    assert line.is_met is True


def test_attention_is_held_against_the_time_of_reading_keys_and_values() -> None:
    needed_s = 8 * (512 - 64) * KV_BYTES / (READ_GB_S * 1e9)
    rates = {
        (ENGINE.name, EIGHT_ROWS): 8 / 0.04,
        (ENGINE.name, "8 rows, base, context 512, all cores"): 8 / (0.04 + needed_s / 0.5),
    }
    line = judged(rates)["attention at 512"]
    assert line.found == pytest.approx(0.5)
    assert line.is_met is False


def test_a_bound_may_be_from_above_or_from_below() -> None:
    above = Line("key", "target", 1.5, False, 1.2)
    below = Line("key", "target", 1.5, True, 1.2)
    assert (above.is_met, below.is_met) == (True, False)
    assert above.margin == pytest.approx(1.25)
    assert below.margin == pytest.approx(0.8)


def test_every_note_is_of_a_line() -> None:
    assert set(NOTES) <= set(by_key(lines(BenchFigures(results()))))


def test_a_ratio_is_worse_beyond_the_tolerance_in_its_own_direction() -> None:
    found = [Line("rate", "t", 1.0, True, 0.8), Line("cost", "t", 1.0, False, 1.2), Line("time", "t", 1, False, 9,
             is_ratio=False)]  # fmt: skip
    assert list(check.worse(found, {"rate": 0.9, "cost": 1.1, "time": 1.0})) == []
    assert [text.partition(":")[0] for text in check.worse(found, {"rate": 1.0, "cost": 1.0})] == ["rate", "cost"]
    assert check.ratios(found) == {"rate": 0.8, "cost": 1.2}


def test_ratios_are_kept_by_kind_of_machine(tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "COMMITTED", tmp_path)
    check.commit("2-one-cpu-123456", {"b": 2.0, "a": 1.0})
    assert check.committed("2-one-cpu-123456") == {"a": 1.0, "b": 2.0}
    assert check.committed("2-other-cpu-123456") is None
