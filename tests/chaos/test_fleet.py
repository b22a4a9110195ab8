"""A fleet under load while workers, Valkey and the store come and go: nothing wrong, nothing lost, nothing left."""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.faults import Durations, Faults, move_tags
from tests.chaos.fleet import Fleet
from tests.chaos.report import table
from tests.chaos.traffic import Load, Traffic, run_clients
from tests.support.tag_ledger import TagLedger
from tests.support.waiting import until_async
from worker_service.adapters.known_reference import ReferenceLimits

NUM_WORKERS = 4
LEASE_S = 2.0
CUT_WITHIN_S = 5.0
"""How long after a worker was lost the end of its streams may be noticed on a busy machine."""
WHOLE_WITHIN_S = LEASE_S + 1.0
"""A lease, and as much again as a recovery may be seen late."""
STALENESS_S = ReferenceLimits().watched_staleness_s + ReferenceLimits().patience_s
"""Of a name while the store is there; while it is away, what is resident is served on."""
MOVING = ("moving-1", "moving-2")


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run."""

    adapters: int
    versions: int
    """Of each name whose tag moves."""
    clients: int
    pause_s: float
    durations: Durations
    run_s: float
    """Faults are done in rounds until then; 0 means one round."""
    is_timed: bool
    """Whether recoveries must be within a lease, rather than happen at all: not on a machine that does other things."""


SHORT = Plan(40, 8, 64, 2.0, Durations(3.0, 4.0, 4.0, 0.0), 0.0, is_timed=False)
LONG = Plan(200, 30, 64, 1.0, Durations(10.0, 20.0, 5.0, 5.0), 600.0, is_timed=True)


async def survive(folder: Path, plan: Plan) -> str:
    """Run the plan, check everything, and return the table of figures."""
    ledger = TagLedger()
    traffic = Traffic(ledger)
    # Room for about a third of the adapters: the others are pulled again and again.
    settings = {"lease_s": f"{LEASE_S:g}", "host_cache_bytes": str(plan.adapters * 700), "log_level": "warning"}
    async with Fleet(folder, **settings, drain_delay_s="0.5", model="step 0.005") as fleet:
        names = [f"bot-{number}" for number in range(plan.adapters)]
        versions = {}
        for name, digest in zip(names, await fleet.push(names, 0), strict=True):
            ledger.begin(name, digest, time.monotonic())
        for number, name in enumerate(MOVING):
            versions[name] = await fleet.push([name] * plan.versions, 10_000 * (number + 1))
            # Pushed side by side: any of them may have been the last.
            for digest in versions[name]:
                ledger.begin(name, digest, time.monotonic())
        faults = Faults(fleet, plan.durations, random.Random(11))
        await fleet.add_workers(NUM_WORKERS)
        await fleet.time_to_whole()

        stop = asyncio.Event()
        load = Load([*MOVING, *names], plan.clients, plan.pause_s)
        endpoint = fleet.store_child.spec.endpoint
        async with asyncio.TaskGroup() as group:
            moving = group.create_task(move_tags(endpoint, ledger, versions, 1.0, stop))
            group.create_task(run_clients(traffic, load, endpoint, fleet.proxy.endpoint, stop))
            ends_s = time.monotonic() + plan.run_s
            try:
                while True:
                    await faults.one_of_each()
                    if time.monotonic() >= ends_s:
                        break
            finally:
                stop.set()

        figures = table(traffic, faults, moving.result())
        print(f"\n{figures}")  # noqa: T201 (pytest shows it when the test fails, or with -s)
        _check_answers(traffic, fleet)
        assert max(traffic.staleness_s) <= STALENESS_S + plan.durations.store_away_s
        assert len(traffic.served_by) >= NUM_WORKERS
        assert faults.exit_codes == [0] * len(faults.exit_codes)
        slow = {name: times for name, times in faults.recovery_s.items() if max(times) > WHOLE_WITHIN_S}
        assert not (plan.is_timed and slow), "placements were not whole within a lease"
        assert not await fleet.lasting_keys()

        await until_async(lambda: fleet.is_whole(changing_share=0))

        async def nothing_is_held() -> bool:
            return not await fleet.in_use()

        try:
            await until_async(nothing_is_held)
        except TimeoutError:
            raise AssertionError(await fleet.in_use()) from None
    assert not fleet.left_over()
    return figures


def _check_answers(traffic: Traffic, fleet: Fleet) -> None:
    assert not traffic.wrong
    assert not traffic.lost
    assert traffic.ended == traffic.asked, "a request ended without anybody noticing"
    unexcused = [f for f in traffic.failures if not f.was_cut(fleet.lost_s, CUT_WITHIN_S)]
    assert not unexcused, [f"{f.name}: {f.kind}: {f.error}" for f in unexcused]


@pytest.mark.chaos
@pytest.mark.integration
async def test_a_fleet_serves_right_answers_through_one_of_each_fault(tmp_path: Path) -> None:
    await survive(tmp_path, SHORT)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.integration
@pytest.mark.timeout(1_200)
async def test_a_fleet_serves_right_answers_through_ten_minutes_of_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = await survive(tmp_path, LONG)
    with capsys.disabled():
        print(f"\n{figures}")  # noqa: T201 (the run is for its figures, too)
