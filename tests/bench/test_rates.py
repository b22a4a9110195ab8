"""Rates come from the time in which all rows decode."""

import pytest

from tools.bench.peers.protocol import TimedAnswer
from tools.bench.rates import RoundSpread, decode_figures, decode_rate, prompt_rate, step_s


def test_only_the_time_in_which_all_rows_decode_counts() -> None:
    early = [0.0, 1.0, 2.0, 3.0, 4.0]
    late = [2.0, 3.0, 4.0, 5.0, 6.0]
    assert decode_rate(TimedAnswer([early, late])) == pytest.approx(4 / 2)
    assert decode_rate(TimedAnswer([early])) == pytest.approx(4 / 4)


def test_rows_that_hardly_overlap_have_no_rate() -> None:
    with pytest.raises(ValueError, match="too few"):
        decode_rate(TimedAnswer([[0.0, 1.0, 2.0], [1.5, 2.5, 3.5]]))


def test_a_prompt_is_over_when_the_last_row_has_its_first_token() -> None:
    assert prompt_rate(TimedAnswer([[1.0, 9.0], [4.0, 9.0]]), 1000) == pytest.approx(250)


def test_a_step_is_the_usual_gap() -> None:
    assert step_s(TimedAnswer([[5.0, 5.1, 5.2, 9.0, 9.1]])) == pytest.approx(0.1)
    assert step_s(TimedAnswer([[5.0]])) == 5.0


def test_rounds_become_a_median_with_its_spread() -> None:
    answers = [TimedAnswer([[0.0, gap, 2 * gap, 3 * gap]]) for gap in (0.1, 0.2, 0.5)]
    found = decode_figures(answers)
    assert found["tok_s"] == pytest.approx({"median": 5.0, "low": 2.0, "high": 10.0, "rounds": 3})
    assert found["gap_p50_ms"] == pytest.approx(200)
    assert RoundSpread.of([1.0, 3.0, 2.0]) == RoundSpread(2.0, 1.0, 3.0, 3)
