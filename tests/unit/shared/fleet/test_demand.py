"""Demand and what it is worth: measured steadily, reported seldom, and never flapping."""

from hypothesis import given
from hypothesis import strategies as st

from hotslot.ids import digest_of
from shared.fleet.demand import DemandMeter, DemandOptions, homes_for, homes_range

OPTIONS = DemandOptions()
VERSION, OTHER = digest_of(b"one"), digest_of(b"other")
ROWS = 16


def observe_for(meter: DemandMeter, sequences: int, start_s: float, duration_s: float) -> list[float]:
    """What is reported after every second with this many sequences in flight."""
    reports = []
    for second in range(round(duration_s)):
        meter.observe({VERSION: sequences} if sequences else {}, sequences, ROWS, start_s + second)
        reports.append(meter.reported(VERSION))
    return reports


demands = st.floats(0, 1_000, allow_nan=False)


@given(demands, st.integers(0, 2_000))
def test_the_number_of_homes_is_worth_the_demand_whatever_it_was(demand: float, current: int) -> None:
    homes = homes_for(demand, current)
    assert homes >= 1
    assert demand <= OPTIONS.raise_above * homes * 1.01
    assert homes == 1 or demand >= OPTIONS.lower_below * (homes - 1) * 0.99


@given(demands, st.integers(0, 2_000))
def test_what_was_decided_stays_decided(demand: float, current: int) -> None:
    homes = homes_for(demand, current)
    assert homes_for(demand, homes) == homes


@given(st.integers(1, 500), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_demand_that_swings_within_the_band_never_changes_the_number_of_homes(
    homes: int, swings: list[float]
) -> None:
    lowest, highest = OPTIONS.lower_below * (homes - 1), OPTIONS.raise_above * homes
    current = homes
    for swing in swings:
        current = homes_for(lowest + swing * (highest - lowest), current)
        assert current == homes


@given(demands, demands)
def test_more_demand_is_worth_at_least_as_many_homes(one: float, other: float) -> None:
    (low, high), (more_low, more_high) = (homes_range(demand) for demand in sorted((one, other)))
    assert low <= more_low
    assert high <= more_high
    assert low <= high


def test_steady_demand_is_reported_to_the_nearest_step() -> None:
    assert observe_for(DemandMeter(), 8, 0.0, 200.0)[-1] == 0.5
    assert observe_for(DemandMeter(), 1, 0.0, 200.0)[-1] == 0.0


def test_a_rise_is_reported_within_seconds_and_a_fall_after_the_dwell_time() -> None:
    meter = DemandMeter()
    assert observe_for(meter, 16, 0.0, 10.0)[-1] > 0
    observe_for(meter, 16, 10.0, 200.0)
    falling = observe_for(meter, 0, 210.0, 300.0)
    unchanged = falling.index(next(value for value in falling if value < 1.0))
    assert OPTIONS.dwell_s <= unchanged < OPTIONS.dwell_s + OPTIONS.smoothing_s
    assert falling[-1] == 0.0


@given(st.lists(st.sampled_from([7, 8, 9]), min_size=50, max_size=200))
def test_a_demand_that_swings_by_less_than_a_step_is_reported_once(swings: list[int]) -> None:
    meter = DemandMeter()
    observe_for(meter, 8, 0.0, 300.0)
    changes = [meter.observe({VERSION: n}, n, ROWS, 300.0 + second) for second, n in enumerate(swings)]
    assert not any(changes)


def test_a_short_dip_changes_nothing() -> None:
    meter = DemandMeter()
    observe_for(meter, 8, 0.0, 200.0)
    observe_for(meter, 0, 200.0, OPTIONS.dwell_s - 10)
    assert meter.reported(VERSION) == 0.5
    assert observe_for(meter, 8, 250.0, 100.0)[-1] == 0.5


def test_the_averages_do_not_depend_on_how_often_they_are_sampled() -> None:
    often, seldom = DemandMeter(), DemandMeter()
    for tenth in range(601):
        often.observe({VERSION: 4}, 6, ROWS, tenth / 10)
    for second in range(0, 61, 5):
        seldom.observe({VERSION: 4}, 6, ROWS, float(second))
    assert abs(often.mean_in_flight - seldom.mean_in_flight) < 1e-9
    assert often.reported(VERSION) == seldom.reported(VERSION)


def test_what_changed_is_named_and_what_is_over_is_forgotten() -> None:
    meter = DemandMeter()
    meter.observe({VERSION: 8, OTHER: 1}, 9, ROWS, 0.0)
    assert meter.observe({VERSION: 8, OTHER: 1}, 9, ROWS, 60.0) == [VERSION]
    for minute in range(2, 20):
        meter.observe({}, 0, ROWS, 60.0 * minute)
    assert meter.tracked == 0
