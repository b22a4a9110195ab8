"""What a router sent since the workers reported: counted from each report on, and spilled by."""

from hotslot.contract.placement import Tier
from hotslot.ids import WorkerId
from shared.fleet.policy import Fleet
from tests.unit.shared.fleet.test_placement import NOW_S, digest, held, names, record
from worker_service.routing.unreported import Unreported


def test_only_what_was_sent_since_the_last_report_counts() -> None:
    unreported, first, second = Unreported(), record(1), record(2)
    workers = {worker.info.worker_id: worker for worker in (first, second)}
    open_at = {first.info.endpoint: 4, second.info.endpoint: 0}
    assert unreported.count(workers, open_at.__getitem__) == {}
    open_at[first.info.endpoint] = 9
    assert unreported.count(workers, open_at.__getitem__) == {first.info.worker_id: 5}
    workers[first.info.worker_id] = record(1, lease_s=11.0)
    assert unreported.count(workers, open_at.__getitem__) == {}
    open_at[first.info.endpoint] = 2
    assert unreported.count(workers, open_at.__getitem__) == {}


def test_a_home_that_was_sent_more_than_it_can_take_spills_before_it_reports() -> None:
    fleet = Fleet([record(n) for n in range(4)], NOW_S)
    (home,) = names(fleet.pick([digest(1)], {}, count=1))
    placements = held(1, {int(home[2:]): Tier.SLOT})
    few, many = ({WorkerId(home): count} for count in (4.0, 40.0))
    assert names(fleet.knowing(few).pick([digest(1)], placements, count=1)) == [home]
    assert names(fleet.knowing(many).pick([digest(1)], placements, count=1)) != [home]
    assert names(fleet.pick([digest(1)], placements, count=1)) == [home], "the fleet itself is not changed"
