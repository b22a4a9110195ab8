"""The pace of calls, over random schedules: no more than a burst and its refill, and never a debt beyond a burst."""

from hypothesis import given
from hypothesis import strategies as st

from shared.server.call_pace import CallPace

RATE, BURST = 10.0, 5.0
STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "take five", "charge", "give back"]), st.floats(0.0, 0.6)), max_size=80
)


@given(STEPS)
def test_what_is_taken_stays_within_a_burst_and_its_refill(steps: list[tuple[str, float]]) -> None:
    pace, now_s, taken = CallPace(RATE, BURST), 100.0, 0.0
    for step, pause_s in steps:
        now_s += pause_s
        if step == "charge":
            pace.charge("a", 4, now_s)
        elif step == "give back" and taken >= 4:
            pace.give_back("a", 4)
            taken -= 4
        else:
            weight = 5.0 if step == "take five" else 1.0
            taken += weight * pace.take("a", now_s, weight)
        assert taken <= BURST + RATE * (now_s - 100.0) + 1e-6


@given(STEPS)
def test_whatever_was_charged_a_caller_may_go_on_after_a_burst_s_time(steps: list[tuple[str, float]]) -> None:
    pace, now_s = CallPace(RATE, BURST), 100.0
    for step, pause_s in steps:
        now_s += pause_s
        pace.charge("a", 40, now_s) if step == "charge" else pace.take("a", now_s)
    assert pace.take("a", now_s + BURST / RATE, BURST)


def test_callers_have_a_pace_each() -> None:
    pace = CallPace(RATE, BURST)
    assert [pace.take("a", 1.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert pace.take("b", 1.0)
    assert not pace.take("a", 1.05)
    assert pace.take("a", 1.1)
